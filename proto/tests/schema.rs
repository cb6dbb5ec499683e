//! The generated types (`src/wire.rs`) are those of `schema/fanfare.proto`; `UPDATE_WIRE=1 cargo test -p
//! fanfare-proto --test schema` writes them anew. So are the descriptors (`schema/fanfare.fds`).

use std::{fs, path::Path};

#[test]
fn generated_types_follow_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(["fanfare.proto"], [root.join("schema")]).expect("the schema compiles");
    let out = std::env::temp_dir().join(format!("fanfare-wire-{}", std::process::id()));
    fs::create_dir_all(&out).unwrap();
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(&out)
        .compile_fds(descriptors)
        .expect("the types generate");
    let generated = fs::read_to_string(out.join("fanfare.v1.rs")).unwrap();
    fs::remove_dir_all(&out).unwrap();
    let path = root.join("src/wire.rs");
    if std::env::var_os("UPDATE_WIRE").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "src/wire.rs is stale: UPDATE_WIRE=1 cargo test -p fanfare-proto --test schema"
    );
}

#[test]
fn descriptors_follow_the_schema() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut descriptors =
        protox::compile(["fanfare.proto"], [root.join("schema")]).expect("the schema compiles");
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let generated = prost::Message::encode_to_vec(&descriptors);
    let path = root.join("schema/fanfare.fds");
    if std::env::var_os("UPDATE_WIRE").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    assert!(
        fanfare_proto::DESCRIPTORS == generated || std::env::var_os("UPDATE_WIRE").is_some(),
        "schema/fanfare.fds is stale: UPDATE_WIRE=1 cargo test -p fanfare-proto --test schema"
    );
}
