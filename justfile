# One front door. `just` lists what there is.

default:
    @just --list

# The whole system on embedded defaults.
run *ARGS:
    cargo run --release -- start --dev {{ARGS}}

# Rebuild and restart on change is left to your editor; this is `run` in the development profile.
dev *ARGS:
    cargo run -- start --dev {{ARGS}}

# What continuous integration checks first.
check:
    cargo fmt --all --check
    cargo clippy --profile ci --workspace --all-targets --all-features -- -D warnings
    cargo test --workspace

test:
    cargo test --workspace

# A community's trace and the lines it typed: name your own by these variables.
trace := env_var_or_default("FANFARE_TRACE", "trace.csv.gz")
bodies := env_var_or_default("FANFARE_BODIES", "lines.txt.gz")

# A real community, every delivery checked. `just replay --messages 30000 --transport mix`
replay *ARGS:
    cargo run --release -p fanfare-loadgen -- replay {{trace}} --bodies {{bodies}} {{ARGS}}

# Each decoder for so many seconds.
fuzz SECONDS="10":
    proto/fuzz/run {{SECONDS}}

# The Autobahn cases against our framing.
autobahn:
    tests/autobahn/run

# A client in another language against the real binary, both transports.
interop:
    tests/interop/run

# Pushes to a receiver that verifies them, with kills in between.
push:
    tests/push/run

# Broken and hostile peers against the real binary.
hostile:
    tests/hostile/run

# fsync errors and full disks at every point of a commit and a drain.
faults:
    tests/faults/run

# Seeded bugs: each must be caught, none reported on the sound build.
mutants:
    tests/mutants/run

# Whether the compiler broke something in a release build (rust-lang/rust#158206).
compiler:
    tests/compiler/run

bench *ARGS:
    cargo bench -p fanfare-benches {{ARGS}}

# Every measurement that has a bar, as one table; `just bars --list` names the rows, `just bars sends storm` runs some of them.
bars *ARGS:
    loadgen/bars {{ARGS}}

# Every command that a document shows, run as its page shows it.
documents:
    tests/documents/run

# Error table, protocol page and vectors written anew from the source.
generate:
    UPDATE_WIRE=1 cargo test -p fanfare-proto --test schema
    UPDATE_VECTORS=1 cargo test -p fanfare-proto --test vectors
    UPDATE_DOCS=1 cargo test -p fanfare-proto --test documents
    UPDATE_DOCS=1 cargo test -p fanfare-server --lib the_reference

# Everything, as continuous integration does it.
ci:
    bash .ci/run

# Accounts and the HTTP API: lives on both transports, bad tokens, administrators, exports, the log, schemathesis over the OpenAPI document
api:
    tests/api/run
