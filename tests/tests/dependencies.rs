//! Dependencies point one way (ARCHITECTURE.md), `proto` stays without a runtime, and the default build links no
//! foreign library but the two that are meant. Read from `cargo tree`, so that no file can say otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde::Deserialize;

/// Which crates of the workspace each may name in its normal and build dependencies.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("fanfare-proto", &[]),
    ("fanfare-activity", &[]),
    ("fanfare-gateway", &["fanfare-proto"]),
    ("fanfare-storage", &["fanfare-proto"]),
    ("fanfare-router", &["fanfare-activity", "fanfare-proto", "fanfare-storage"]),
    ("fanfare-presence", &["fanfare-proto", "fanfare-storage"]),
    ("fanfare-client", &["fanfare-proto"]),
    ("fanfare-loadgen", &["fanfare-activity", "fanfare-proto", "fanfare-client"]),
    (
        "fanfare-server",
        &[
            "fanfare-activity",
            "fanfare-proto",
            "fanfare-storage",
            "fanfare-router",
            "fanfare-presence",
            "fanfare-gateway",
            "fanfare-client",
        ],
    ),
    ("fanfare-benches", ANY),
    // Black-box: the names of the steps to die at are all that it takes from the inside.
    ("fanfare-tests", &["fanfare-proto", "fanfare-storage"]),
    ("fanfare-powercut", &[]),
    ("fanfare-interop", &["fanfare-proto"]),
    ("fanfare-hostile", &["fanfare-proto"]),
];

/// A crate that may know all others.
const ANY: &[&str] = &["*"];

/// What must not be below a crate at any depth: (crate, package, why).
const NEVER_BELOW: &[(&str, &[&str], &str)] = &[
    (
        "fanfare-proto",
        &[
            "tokio",
            "async-std",
            "quinn",
            "quinn-proto",
            "rustls",
            "rusqlite",
            "fjall",
            "rand",
            "mio",
            "axum",
            "hyper",
        ],
        "it has no runtime, socket, clock or random number",
    ),
    ("fanfare-gateway", &["rusqlite", "fjall"], "rows are not its business"),
    (
        "fanfare-storage",
        &["tokio", "quinn", "rustls", "axum"],
        "it knows no session and has threads of its own",
    ),
    ("fanfare-router", &["quinn", "rustls", "axum", "hyper"], "sockets are not its business"),
    ("fanfare-presence", &["quinn", "rustls", "axum", "hyper"], "sockets are not its business"),
    (
        "fanfare-client",
        &["fjall", "axum"],
        "a client knows nothing of the server but the protocol (its own store may stand on SQLite)",
    ),
    (
        "fanfare-server",
        &[
            "rdkafka",
            "rdkafka-sys",
            "openssl",
            "openssl-sys",
            "native-tls",
            "ring",
            "scylla",
            "cassandra-cpp",
        ],
        "the default build needs nothing installed and has one crypto library",
    ),
];

/// Native libraries (`links` of Cargo.toml) that the default build of the server may bring, by prefix.
const LINKS: &[&str] = &["sqlite3", "aws_lc", "mimalloc"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    links: Option<String>,
}

fn cargo(args: &[&str]) -> String {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let output = Command::new(&cargo).current_dir(root).args(args).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

/// The packages of the workspace with the names of their native libraries.
fn packages(deps: bool) -> Vec<Package> {
    let mut args = vec!["metadata", "--format-version", "1"];
    if !deps {
        args.push("--no-deps");
    }
    serde_json::from_str::<Metadata>(&cargo(&args)).expect("cargo metadata prints JSON").packages
}

/// What lies below a member (its normal dependencies, default features, this platform; `cargo metadata` would also
/// name optional ones that nobody asked for): each package with the way down to it.
fn below(member: &str, edges: &str) -> BTreeMap<String, Vec<String>> {
    let text = cargo(&["tree", "-p", member, "-e", edges, "--prefix", "depth", "--format", " {p}"]);
    ways(&text)
}

fn ways(tree: &str) -> BTreeMap<String, Vec<String>> {
    let mut ways = BTreeMap::new();
    let mut way: Vec<String> = Vec::new();
    for line in tree.lines() {
        let mut words = line.split_whitespace();
        let (Some(depth), Some(name)) = (words.next().and_then(|depth| depth.parse().ok()), words.next())
        else {
            continue;
        };
        way.truncate(depth);
        way.push(name.to_owned());
        ways.entry(name.to_owned()).or_insert_with(|| way.clone());
    }
    ways
}

/// What is wrong with the tree below one member.
fn faults(member: &str, tree: &BTreeMap<String, Vec<String>>, members: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some((_, may_know)) = MAY_KNOW.iter().find(|(name, _)| *name == member) else {
        return vec![format!("{member} has no row in MAY_KNOW: say what it may know")];
    };
    for (other, way) in tree.iter().filter(|(name, _)| *name != member && members.contains(*name)) {
        if *may_know != ANY && !may_know.contains(&&**other) {
            wrong.push(format!("{member} must not know {other}, only {may_know:?}: {}", way.join(" -> ")));
        }
    }
    for (of, forbidden, why) in NEVER_BELOW.iter().filter(|(of, _, _)| *of == member) {
        for package in *forbidden {
            if let Some(way) = tree.get(*package) {
                wrong.push(format!("{of} must not have {package} below it ({why}): {}", way.join(" -> ")));
            }
        }
    }
    wrong
}

#[test]
fn dependencies_point_one_way() {
    let members: BTreeSet<String> = packages(false).into_iter().map(|package| package.name).collect();
    let wrong: Vec<String> = members
        .iter()
        // Build scripts tie crates together as well.
        .flat_map(|member| faults(member, &below(member, "normal,build"), &members))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_default_build_links_no_other_native_library() {
    let tree = below("fanfare-server", "normal");
    let mut wrong = Vec::new();
    for package in packages(true) {
        if let (Some(links), Some(way)) = (&package.links, tree.get(&package.name))
            && !LINKS.iter().any(|known| links.starts_with(known))
        {
            wrong.push(format!("{} links {links}: {}", package.name, way.join(" -> ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_edge_would_be_seen() {
    let members = ["fanfare-proto", "fanfare-storage", "fanfare-gateway"].map(String::from).into();
    let tree = ways("0 fanfare-gateway v1\n1 fanfare-proto v1\n1 fanfare-storage v1\n2 rusqlite v1 (*)\n");
    let wrong = faults("fanfare-gateway", &tree, &members);
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(wrong[1].ends_with("fanfare-gateway -> fanfare-storage -> rusqlite"), "{wrong:?}");
    assert_eq!(faults("fanfare-new", &tree, &members).len(), 1);
}
