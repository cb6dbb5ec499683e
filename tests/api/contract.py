"""schemathesis over the whole OpenAPI document of the real binary: no 5xx, no answer that the document does not have."""

import os
import subprocess
import sys
from pathlib import Path

from http_client import Http
from running import RunningServer

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method"
)


def main():
    tool = Path(sys.executable).with_name("schemathesis")
    with RunningServer(os.environ["FANFARE"], "--limits", "load") as running:
        url = running.server.http
        token = running.token("alice")
        paths = Http(url).good("GET", "/openapi.json")["paths"]
        command = [tool, "--config-file", Path(__file__).with_name("schemathesis.toml"), "run", f"{url}/openapi.json", "--checks", CHECKS, "--header", f"Authorization: Bearer {token}"]
        command += ["--max-examples", str(EXAMPLES), "--seed", os.environ.get("SEED", "1"), "--phases", "examples,coverage,fuzzing"]
        # What signs the caller out would leave the others without their token: the accounts' lives cover it.
        command += ["--exclude-path", "/v1/sessions/current", "--exclude-operation-id", "sign_out_everywhere"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        lines = [line[:300] for line in done.stdout.splitlines()]
        print("\n".join(lines[-150:] if done.returncode else lines[-6:]))
        assert done.returncode == 0, done.stderr[-2000:]
        print(f"{len(paths)} paths under schemathesis: ok")


main()
