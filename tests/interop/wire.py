"""Frames of the Fanfare protocol, version 1, from docs/protocol.md: headers, and bodies by the schema.

The protobuf codec is a table read from proto/schema/fanfare.proto and some sixty lines that walk it. Bodies are
dicts; a field with its default value is absent.
"""

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAME_BYTES_MAX = 64 * 1024
ID_MAX = 2**63 - 1
REPEATED_MAX = 1000

# name: (number, side that sends it, body)
TYPES = {
    "HELLO": (0x01, "client", "Hello"),
    "WELCOME": (0x02, "server", "Welcome"),
    "AUTH": (0x03, "both", "Auth"),
    "PING": (0x04, "client", "Ping"),
    "PONG": (0x05, "server", "Pong"),
    "ACK": (0x06, "client", "Ack"),
    "GOAWAY": (0x07, "server", "GoAway"),
    "CLOSE": (0x08, "both", "Error"),
    "STATE": (0x09, "client", "State"),
    "SYNC": (0x0A, "client", "Sync"),
    "SYNCED": (0x0B, "server", "Synced"),
    "ERROR": (0x0C, "server", "Error"),
    "SEND": (0x81, "client", "Send"),
    "SEND_ACK": (0x82, "server", "SendAck"),
    "DELIVER": (0x83, "server", "Entry"),
    "RECEIPT": (0x84, "both", "Receipt"),
    "COUNTS": (0x85, "both", "Counts"),
    "NOTIFY": (0x86, "server", "Head"),
    "GAP": (0x87, "server", "Head"),
    "FETCH": (0x88, "client", "Fetch"),
    "PAGE": (0x89, "server", "Page"),
    "TYPING": (0x8A, "both", "Typing"),
    "PRESENCE": (0x8B, "both", "Presence"),
    "OPEN": (0x8C, "client", "Open"),
    "CHANNEL": (0x8D, "server", "ChannelState"),
    "REFUSED": (0x8E, "server", "Error"),
}
NAMES = {number: name for name, (number, _, _) in TYPES.items()}
OPAQUE, COUNTED, STUB = 1, 2, 4
RETRY = 1


class Refused(Exception):
    """Bytes that a receiver refuses, with the error number of docs/protocol.md section 8."""

    def __init__(self, code, why=""):
        super().__init__(f"{code} {why}")
        self.code = code


UNKNOWN_TYPE, FRAME_TOO_LARGE, RESERVED_BITS, BAD_BODY = 1001, 1002, 1003, 1004
OUT_OF_STATE, BAD_FIELD, TRUNCATED = 1005, 1006, 1010


# ---------------------------------------------------------------- bodies


@dataclass
class Field:
    name: str
    number: int
    kind: str
    repeated: bool = False
    optional: bool = False
    oneof: bool = False


def read_schema(text):
    """({message: {number: Field}}, {enum: {number: name}}) of a proto3 file without nested types or maps."""
    text = re.sub(r"//[^\n]*", "", text)
    messages, enums = {}, {}
    for kind, name, body in re.findall(r"(message|enum) (\w+) \{((?:[^{}]|\{[^{}]*\})*)\}", text):
        if kind == "enum":
            enums[name] = {int(number): value for value, number in re.findall(r"(\w+) = (\d+);", body)}
            continue
        fields = messages[name] = {}
        inside = "".join(re.findall(r"oneof \w+ \{([^{}]*)\}", body))
        of_oneof = set(re.findall(r"\w+ (\w+) = \d+;", inside))
        for label, type_, field_name, number in re.findall(r"(repeated |optional )?(\w+) (\w+) = (\d+);", body):
            fields[int(number)] = Field(
                field_name, int(number), type_, label == "repeated ", label == "optional ", field_name in of_oneof
            )
    return messages, enums


MESSAGES, ENUMS = read_schema((ROOT / "proto/schema/fanfare.proto").read_text())
BY_NAME = {name: {f.name: f for f in fields.values()} for name, fields in MESSAGES.items()}
DEFAULTS = {"string": "", "bytes": b"", "bool": False}


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_body(message, value):
    out = bytearray()
    for name, given in value.items():
        if name not in BY_NAME[message]:
            raise ValueError(f"{message} has no field {name}")
    for f in MESSAGES[message].values():
        if f.name not in value:
            continue
        given = value[f.name]
        if f.repeated and f.kind == "fixed64":
            if given:
                packed = b"".join(struct.pack("<Q", one) for one in given)
                out += varint(f.number << 3 | 2) + varint(len(packed)) + packed
        elif f.repeated:
            for one in given:
                out += encode_value(f, one)
        elif f.optional or f.oneof or f.kind in MESSAGES or given != DEFAULTS.get(f.kind, 0):
            out += encode_value(f, given)
    return bytes(out)


def encode_value(f, value):
    if f.kind == "fixed64":
        return varint(f.number << 3 | 1) + struct.pack("<Q", value)
    if f.kind in ("uint32", "uint64", "bool"):
        return varint(f.number << 3) + varint(int(value))
    if f.kind in ENUMS:
        number = value if isinstance(value, int) else next(n for n, name in ENUMS[f.kind].items() if name == value)
        return varint(f.number << 3) + varint(number % 2**64)
    if f.kind in MESSAGES:
        value = encode_body(f.kind, value)
    elif f.kind == "string":
        value = value.encode()
    return varint(f.number << 3 | 2) + varint(len(value)) + value


class Reader:
    """Bounds are checked before anything is taken."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        if length > len(self.data) - self.at:
            raise Refused(BAD_BODY, "ends early")
        self.at += length
        return self.data[self.at - length : self.at]

    def varint(self):
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64:
                    raise Refused(BAD_BODY, "a varint over 64 bits")
                return value
        raise Refused(BAD_BODY, "a varint of 11 bytes")

    def key(self):
        key = self.varint()
        if key >> 3 == 0 or key >= 2**32 or key & 7 > 5:
            raise Refused(BAD_BODY, "not a field's key")
        return key >> 3, key & 7

    def skip(self, number, wire_type, depth=0):
        if wire_type == 0:
            self.varint()
        elif wire_type == 1:
            self.take(8)
        elif wire_type == 2:
            self.take(self.varint())
        elif wire_type == 5:
            self.take(4)
        elif wire_type == 3 and depth < 100:
            while True:
                inner, inner_type = self.key()
                if inner_type == 4:
                    if inner != number:
                        raise Refused(BAD_BODY, "another group ends")
                    return
                self.skip(inner, inner_type, depth + 1)
        else:
            raise Refused(BAD_BODY, "a group's end without its beginning")


def decode_body(message, data, depth=0):
    if depth > 16:
        raise Refused(BAD_BODY, "nested too deep")
    reader, value = Reader(data), {}
    while reader.at < len(data):
        number, wire_type = reader.key()
        f = MESSAGES[message].get(number)
        if f is None:
            reader.skip(number, wire_type)
            continue
        if f.repeated and f.kind == "fixed64" and wire_type == 2:
            packed = reader.take(reader.varint())
            if len(packed) % 8:
                raise Refused(BAD_BODY, "half a number")
            value.setdefault(f.name, []).extend(one for (one,) in struct.iter_unpack("<Q", packed))
            continue
        one = decode_value(f, wire_type, reader, depth)
        if f.repeated:
            value.setdefault(f.name, []).append(one)
            if len(value[f.name]) > REPEATED_MAX:
                raise Refused(BAD_FIELD, f"over 1,000 {f.name}")
            continue
        if f.oneof:
            for other in MESSAGES[message].values():
                if other.oneof and other.name != f.name:
                    value.pop(other.name, None)
        value[f.name] = one
        if not (f.optional or f.oneof or f.kind in MESSAGES) and one == DEFAULTS.get(f.kind, 0):
            del value[f.name]
    for f in MESSAGES[message].values():
        if f.kind in ENUMS and f.name in value:
            # An unknown value is taken for the enum's 0, which is absent.
            value[f.name] = ENUMS[f.kind].get(value[f.name], None)
            if value[f.name] in (None, ENUMS[f.kind][0]):
                del value[f.name]
    return value


def decode_value(f, wire_type, reader, depth):
    wanted = 1 if f.kind == "fixed64" else 0 if f.kind in ("uint32", "uint64", "bool") or f.kind in ENUMS else 2
    if wire_type != wanted:
        raise Refused(BAD_BODY, f"{f.name} with wire type {wire_type}")
    if wanted == 1:
        return struct.unpack("<Q", reader.take(8))[0]
    if wanted == 0:
        number = reader.varint()
        if f.kind == "bool":
            return number != 0
        return number if f.kind == "uint64" else number & 0xFFFFFFFF
    data = reader.take(reader.varint())
    if f.kind in MESSAGES:
        return decode_body(f.kind, data, depth + 1)
    if f.kind == "bytes":
        return bytes(data)
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise Refused(BAD_BODY, "text that is not UTF-8") from error


# ---------------------------------------------------------------- frames


@dataclass
class Frame:
    type: str
    body: dict = field(default_factory=dict)
    channel: int = 0
    seq: int = 0
    flags: int = 0
    class_: int = 0
    epoch: int = 0
    # All bytes, as they came.
    raw: bytes = b""

    def encode(self):
        number, _, message = TYPES[self.type]
        body = encode_body(message, self.body)
        head = struct.pack("<BBBBI", number, self.flags, self.class_, self.epoch, len(body))
        if number & 0x80:
            head += struct.pack("<QQ", self.channel, self.seq)
        return head + body


def split(data):
    """The length of the first frame's header and of the whole frame; None while that is not known."""
    if not data:
        return None
    if data[0] not in NAMES:
        raise Refused(UNKNOWN_TYPE, hex(data[0]))
    if len(data) < 8:
        return None
    number, flags, class_, epoch, length = struct.unpack_from("<BBBBI", data)
    if flags & 0xF0 or class_ & 0x70 or (number < 0x80 and epoch):
        raise Refused(RESERVED_BITS)
    if length > FRAME_BYTES_MAX - 24:
        raise Refused(FRAME_TOO_LARGE, str(length))
    head = 24 if number & 0x80 else 8
    if len(data) < head:
        return None
    if head == 24 and max(struct.unpack_from("<QQ", data, 8)) > ID_MAX:
        raise Refused(RESERVED_BITS, "an id of 64 bits")
    return head, head + length


def decode(data, side="server"):
    """One whole frame of that side, its body decoded and held against what a client builds upon."""
    head, length = split(data)
    number, flags, class_, epoch, _ = struct.unpack_from("<BBBBI", data)
    channel, seq = struct.unpack_from("<QQ", data, 8) if head == 24 else (0, 0)
    name = NAMES[number]
    if TYPES[name][1] not in (side, "both"):
        raise Refused(UNKNOWN_TYPE, f"{name} from a {side}")
    meant = {"SEND": RETRY, "DELIVER": OPAQUE | COUNTED | STUB}.get(name, 0)
    if flags & ~meant or (epoch and name not in ("DELIVER", "NOTIFY", "GAP", "PAGE")):
        raise Refused(RESERVED_BITS)
    if side == "server" and name in ("DELIVER", "RECEIPT", "NOTIFY", "GAP") and channel == 0:
        raise Refused(BAD_FIELD, "channel 0")
    if name == "DELIVER" and seq == 0:
        raise Refused(BAD_FIELD, "seq 0")
    body = decode_body(TYPES[name][2], data[head:length])
    if name == "PAGE":
        if body.get("first", 0) > body.get("last", 0):
            raise Refused(BAD_FIELD, "first behind last")
        for inner in [body.get("frames", b"")] + [a.get("frame", b"") for a in body.get("amendments", [])]:
            for frame in decode_all(inner):
                if frame.type != "DELIVER":
                    raise Refused(BAD_FIELD, f"{frame.type} in a page")
    return Frame(name, body, channel, seq, flags, class_, epoch, bytes(data[:length]))


def decode_all(data, side="server"):
    """All frames of a WebSocket message or of a page, which ends with the last of them."""
    frames, at = [], 0
    while at < len(data):
        size = split(data[at : at + 24])
        if size is None or at + size[1] > len(data):
            raise Refused(TRUNCATED)
        frames.append(decode(data[at : at + size[1]], side))
        at += size[1]
    return frames


class FrameBuffer:
    """Cuts a stream into frames."""

    def __init__(self):
        self.data = bytearray()

    def feed(self, chunk):
        self.data += chunk
        frames = []
        while (size := split(self.data)) is not None and len(self.data) >= size[1]:
            frames.append(decode(bytes(self.data[: size[1]])))
            del self.data[: size[1]]
        return frames


def to_json(message, value):
    """A body in the form of the vectors' `fields.body`."""
    out = {}
    for name, given in value.items():
        f = BY_NAME[message][name]
        convert = {"fixed64": str, "uint64": str, "bytes": bytes.hex}.get(f.kind, lambda one: one)
        if f.kind in MESSAGES:
            convert = lambda one, kind=f.kind: to_json(kind, one)  # noqa: E731
        out[name] = [convert(one) for one in given] if f.repeated else convert(given)
    return out


def frame_json(frame):
    number, _, message = TYPES[frame.type]
    fields = {
        "type": frame.type,
        "flags": frame.flags,
        "class": frame.class_,
        "epoch": frame.epoch,
        "body": to_json(message, frame.body),
    }
    if number & 0x80:
        fields |= {"channel": str(frame.channel), "seq": str(frame.seq)}
    return fields
