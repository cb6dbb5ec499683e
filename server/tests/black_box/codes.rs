//! Error numbers that no other test produces, each by a command.

use std::process::{Command, Output};

use crate::process::{fanfare, stderr, stdout};

fn told(output: &Output, exit: i32, code: &str) {
    let said = format!("{}{}", stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.contains(code), "{code} is not in {said}");
}

#[test]
fn a_configuration_that_does_not_read_or_is_out_of_range() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let run =
        |arguments: &[&str]| fanfare(arguments).current_dir(folder.path()).output().expect("the binary runs");
    told(&run(&["config", "check", "--config", "none.toml"]), 6, "FAN-C001");
    std::fs::write(folder.path().join("fanfare.toml"), "[router]\nshards = 3\n").expect("written");
    told(&run(&["config", "check"]), 6, "FAN-C003");
    told(&run(&["start"]), 6, "FAN-C003");
    std::fs::write(folder.path().join("fanfare.toml"), "this is no TOML").expect("written");
    told(&run(&["config", "check"]), 6, "FAN-C001");
}

#[test]
fn what_the_folder_holds_and_does_not_read_back_is_said() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let run =
        |arguments: &[&str]| fanfare(arguments).current_dir(folder.path()).output().expect("the binary runs");
    assert!(run(&["setup"]).status.success());
    let database = folder.path().join("fanfare-data/meta.db");
    let mut bytes = std::fs::read(&database).expect("readable");
    bytes[..64].fill(0x5a);
    std::fs::write(&database, bytes).expect("written");
    told(&run(&["setup"]), 1, "FAN-S103");
}

#[test]
fn doctor_finds_what_a_machine_lacks() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let run = |command: &mut Command| command.current_dir(folder.path()).output().expect("the binary runs");
    let doctor = |only: &str, data: &str| run(fanfare(&["doctor", "--only", only, "--data"]).arg(data));
    std::fs::write(folder.path().join("file"), "no folder").expect("written");
    told(&doctor("folder", "./file"), 5, "FAN-D001");
    // The kernel's own file systems have no room at all.
    told(&doctor("space", "/proc/none"), 5, "FAN-D003");
    let missing = run(fanfare(&["doctor", "--only", "certificate"])
        .env("FANFARE__TLS__CERTIFICATE", "none.pem")
        .env("FANFARE__TLS__KEY", "none.pem"));
    told(&missing, 5, "FAN-D010");
    let few = run(Command::new("sh").args([
        "-c",
        "ulimit -n 200; exec \"$0\" doctor --only files",
        env!("CARGO_BIN_EXE_fanfare"),
    ]));
    told(&few, 5, "FAN-D004");
}
