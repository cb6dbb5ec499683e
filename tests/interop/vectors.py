"""The golden vectors against this client: it decodes every valid one to its fields, encodes those of a client to the
same bytes, and refuses every invalid one of a server with its number. Needs neither a server nor a package."""

import json

import wire


def main():
    valid = json.loads((wire.ROOT / "proto/vectors/valid.json").read_text())
    invalid = json.loads((wire.ROOT / "proto/vectors/invalid.json").read_text())
    wrong = []
    for vector in valid:
        data = bytes.fromhex(vector["hex"])
        try:
            (frame,) = wire.decode_all(data, vector["from"])
            if wire.frame_json(frame) != vector["fields"]:
                wrong.append(f"{vector['name']}: fields {wire.frame_json(frame)}")
            if frame.encode() != data:
                wrong.append(f"{vector['name']}: encodes to {frame.encode().hex()}")
        except wire.Refused as refused:
            wrong.append(f"{vector['name']}: refused {refused}")
        for cut in range(1, min(len(data), 600)):
            try:
                wire.decode_all(data[:cut], vector["from"])
                wrong.append(f"{vector['name']}: its first {cut} bytes pass")
            except wire.Refused as refused:
                if refused.code != wire.TRUNCATED:
                    wrong.append(f"{vector['name']}: its first {cut} bytes give {refused}")
    refused_count = 0
    for vector in invalid:
        # Bounds of what clients send are the server's to hold; what concerns bytes and sides holds for both.
        if vector["from"] == "client" and vector["code"] not in (
            wire.UNKNOWN_TYPE,
            wire.FRAME_TOO_LARGE,
            wire.RESERVED_BITS,
            wire.BAD_BODY,
            wire.TRUNCATED,
        ):
            continue
        refused_count += 1
        try:
            wire.decode_all(bytes.fromhex(vector["hex"]), vector["from"])
            wrong.append(f"{vector['name']}: passes")
        except wire.Refused as refused:
            if refused.code != vector["code"]:
                wrong.append(f"{vector['name']}: {refused}, not {vector['code']}")
    for line in wrong:
        print(f"vectors: {line[:300]}")
    assert not wrong, f"{len(wrong)} vectors failed"
    assert valid and refused_count
    print(f"vectors: ok: {len(valid)} valid decoded, {refused_count} invalid refused")


if __name__ == "__main__":
    main()
