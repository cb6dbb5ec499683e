"""Seeds for the fuzz targets that read frames, from the golden vectors: each frame alone, and all of a side in a row."""

import json
from pathlib import Path

FUZZ = Path(__file__).resolve().parent


def write(target, prefix, name, data):
    folder = FUZZ / "seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(prefix + data)


def main():
    valid = json.loads((FUZZ / "../vectors/valid.json").read_text())
    invalid = json.loads((FUZZ / "../vectors/invalid.json").read_text())
    short = [(v["from"], bytes.fromhex(v["hex"])) for v in valid + invalid if len(v["hex"]) <= 4096]
    for number, (side, data) in enumerate(short):
        write("frame", b"\x00\x10\x07" if side == "client" else b"\x01\x10\x07", f"vector-{number}", data)
    sides = {side: [bytes.fromhex(v["hex"]) for v in valid if v["from"] == side and len(v["hex"]) <= 2048]
             for side in ("client", "server")}
    welcome = next(bytes.fromhex(v["hex"]) for v in valid if v["fields"]["type"] == "WELCOME")
    hello = next(bytes.fromhex(v["hex"]) for v in valid if v["fields"]["type"] == "HELLO")
    for acts in range(8):
        write("client_session", bytes([acts, 10]), f"all-{acts}", welcome + b"".join(sides["server"]))
        write("server_session", bytes([acts, 10]), f"all-{acts}", hello + b"".join(sides["client"]))
    for number, data in enumerate(sides["server"]):
        write("client_session", b"\x00\x01", f"vector-{number}", welcome + data)
    for number, data in enumerate(sides["client"]):
        write("server_session", b"\x00\x01", f"vector-{number}", hello + data)


if __name__ == "__main__":
    main()
