//! Commands from outside: errors in their form, exit codes, JSON that parses, colours that stay away.

use std::process::Stdio;

use crate::process::{PATIENCE, Server, fanfare, lines, stderr, stdout};
use fanfare_proto::Code;
use serde_json::Value;

#[test]
fn without_a_command_it_shows_examples_and_starts_nothing() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let output = fanfare(&[]).current_dir(folder.path()).output().expect("the binary runs");
    assert!(output.status.success());
    assert!(stdout(&output).contains("fanfare start --dev"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0, "nothing was made");
}

#[test]
fn every_error_number_is_explained() {
    for row in Code::TABLE {
        for asked in [row.code.to_string(), row.code.0.to_string(), row.name.to_lowercase()] {
            let output = fanfare(&["explain", &asked, "--json"]).output().expect("the binary runs");
            let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(value["schema"], "fanfare.explanation/v1");
            assert_eq!(
                (value["number"].as_u64(), value["name"].as_str()),
                (Some(row.code.0.into()), Some(row.name))
            );
            if asked == row.name.to_lowercase() {
                break;
            }
        }
    }
    let unknown = fanfare(&["explain", "FAN-Z999"]).output().expect("the binary runs");
    assert_eq!(unknown.status.code(), Some(8));
    let near = fanfare(&["explain", "FAN-S10"]).output().expect("the binary runs");
    assert!(stderr(&near).contains("try"), "{}", stderr(&near));
}

#[test]
fn mistakes_in_the_configuration_name_place_and_remedy_and_exit_with_6() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("fanfare.toml");
    std::fs::write(&path, "[gateway]\nlistn = '127.0.0.1:1'\n").expect("written");
    for command in [&["config", "check"][..], &["start"], &["user", "ls"]] {
        let output = fanfare(command).current_dir(folder.path()).output().expect("the binary runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(6), "{said}");
        assert!(said.starts_with("error FAN-C002: fanfare.toml:2  unknown key `gateway.listn`"), "{said}");
        assert!(
            said.contains("  try   gateway.listen") && said.contains("  more  fanfare explain FAN-C002"),
            "{said}"
        );
    }
    let output =
        fanfare(&["config", "check", "--json"]).current_dir(folder.path()).output().expect("the binary runs");
    let error: Value = serde_json::from_str(&stderr(&output)).expect("JSON on stderr");
    assert_eq!((error["schema"].as_str(), error["exit"].as_u64()), (Some("fanfare.error/v1"), Some(6)));

    std::fs::write(&path, "[gateway]\nlisten = '127.0.0.1:9'\n").expect("written");
    let shown = fanfare(&["config", "show", "--origin", "--json"])
        .env("FANFARE__LOG__FORMAT", "json")
        .current_dir(folder.path())
        .output()
        .expect("the binary runs");
    let value: Value = serde_json::from_slice(&shown.stdout).expect("JSON");
    let origin = |key: &str| {
        let keys = value["config"].as_array().expect("keys");
        keys.iter()
            .find(|one| one["key"] == key)
            .map(|one| one["origin"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(origin("gateway.listen").as_deref(), Some("fanfare.toml:2"));
    assert_eq!(origin("log.format").as_deref(), Some("env FANFARE__LOG__FORMAT"));
    assert_eq!(origin("http.listen").as_deref(), Some("default"));
}

#[test]
fn dev_mode_stays_on_loopback() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    for flag in ["--listen", "--http"] {
        let output = fanfare(&["start", "--dev", flag, "0.0.0.0:0"])
            .current_dir(folder.path())
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("FAN-S105"), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0, "nothing was made");
}

#[test]
fn roles_alone_are_left_to_a_later_version() {
    let output = fanfare(&["start", "--role", "gateway"]).output().expect("the binary runs");
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("FAN-S008") && stderr(&output).contains("later version"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_public_address_needs_a_certificate() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let output = fanfare(&["start", "--listen", "0.0.0.0:0", "--http", "127.0.0.1:0"])
        .current_dir(folder.path())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("FAN-S107") && stderr(&output).contains("tls.certificate"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn usage_errors_exit_with_2_in_both_forms() {
    let human = fanfare(&["sned", "general", "hi"]).output().expect("the binary runs");
    assert_eq!(human.status.code(), Some(2));
    assert!(stderr(&human).starts_with("error: ") && stderr(&human).contains("send"), "{}", stderr(&human));
    let json = fanfare(&["--json", "sned"]).output().expect("the binary runs");
    let error: Value = serde_json::from_str(&stderr(&json)).expect("JSON on stderr");
    assert_eq!((error["schema"].as_str(), error["exit"].as_u64()), (Some("fanfare.error/v1"), Some(2)));
}

#[test]
fn without_a_server_commands_say_how_to_start_one_and_exit_with_3() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    for command in [&["status"][..], &["user", "ls"], &["send", "general", "hi"], &["reconcile"]] {
        let output = fanfare(command).current_dir(folder.path()).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains("FAN-S106") && stderr(&output).contains("fanfare start --dev"));
    }
}

#[test]
fn setup_may_run_twice() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let made = |expected: bool| {
        let output =
            fanfare(&["setup", "--json"]).current_dir(folder.path()).output().expect("the binary runs");
        assert!(output.status.success(), "{}", stderr(&output));
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let steps = value["steps"].as_array().expect("steps").clone();
        assert!(steps.iter().all(|step| step["made"] == expected), "{value}");
    };
    made(true);
    made(false);
}

#[test]
fn data_of_another_format_exits_with_7_and_is_left_alone() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let setup = fanfare(&["setup"]).current_dir(folder.path()).output().expect("the binary runs");
    assert!(setup.status.success(), "{}", stderr(&setup));
    let format = folder.path().join("fanfare-data/format");
    std::fs::write(&format, "99\n").expect("written");
    for command in
        [&["start", "--dev", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"][..], &["reconcile"]]
    {
        let output = fanfare(command).current_dir(folder.path()).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
        assert!(stderr(&output).contains("FAN-S102"), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read_to_string(&format).expect("readable"), "99\n");
}

#[test]
fn two_servers_never_write_one_folder() {
    let server = Server::dev();
    for command in [&["start", "--dev", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"][..], &["setup"]] {
        let output = server.run(command);
        assert_eq!(output.status.code(), Some(1));
        let said = stderr(&output);
        assert!(said.starts_with("error FAN-S101: ") && said.contains("pid"), "{said}");
        assert!(said.contains("fanfare status"), "{said}");
    }
    server.ok(&["status"]);
}

#[test]
fn a_start_says_in_json_where_it_is() {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let mut command =
        fanfare(&["start", "--dev", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]);
    let mut child =
        command.current_dir(folder.path()).stdout(Stdio::piped()).spawn().expect("the binary runs");
    let line = lines(child.stdout.take().expect("piped")).recv_timeout(PATIENCE).expect("one line");
    let ready: Value = serde_json::from_str(&line).expect("JSON");
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!((ready["schema"].as_str(), ready["dev"].as_bool()), (Some("fanfare.ready/v1"), Some(true)));
    assert_eq!(ready["certificate_sha256"][0].as_str().map(str::len), Some(64));
}

#[test]
fn a_taken_port_is_said_with_the_way_out() {
    let server = Server::dev();
    let admin = server.admin();
    let other = tempfile::tempdir().expect("a scratch folder");
    for (flag, address) in [("--listen", &admin["gateway"]), ("--http", &admin["address"])] {
        let free = if flag == "--listen" { "--http" } else { "--listen" };
        let address = address.as_str().expect("an address");
        let output = fanfare(&["start", "--dev", flag, address, free, "127.0.0.1:0", "--data"])
            .arg(other.path().join("data"))
            .output()
            .expect("the binary runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("FAN-S104") && said.contains(address) && said.contains("try"), "{said}");
    }
}

#[test]
fn every_result_is_json_with_a_schema_where_asked_for() {
    let server = Server::dev();
    server.ok(&["send", "general", "hi", "--as", "bob"]);
    let commands: &[&[&str]] = &[
        &["version"],
        &["explain"],
        &["explain", "FAN-P004"],
        &["config", "check"],
        &["config", "show"],
        &["config", "docs"],
        &["cheat", "start"],
        &["decode", "0400000009000000097b1efd7a9a010000"],
        &["doctor", "--only", "folder,udp,clock"],
        &["context", "ls"],
        &["device", "ls", "--user", "echo-bot"],
        &["session", "kick", "--user", "dave"],
        &["channel", "info", "general"],
        &["top", "--count", "1", "--interval", "100ms"],
        &["status"],
        &["reconcile"],
        &["admin", "ls"],
        &["admin", "link"],
        &["admin", "webhook-keys", "ls"],
        &["user", "add", "erin"],
        &["user", "ls"],
        &["user", "token", "erin", "--ttl", "5m"],
        &["channel", "create", "garden", "--as", "erin", "--members", "alice"],
        &["channel", "ls", "--as", "alice"],
        &["channel", "members", "general"],
        &["channel", "history", "general", "--limit", "5"],
        &["session", "ls", "--user", "echo-bot"],
        &["send", "general", "hello"],
        &["send", "@carol", "hello"],
    ];
    for command in commands {
        server.json(command);
        let verbs = server.run(&[command, &["-o", "ndjson"][..]].concat());
        for line in stdout(&verbs).lines() {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{command:?}: {error}: {line}"));
            assert!(value["schema"].as_str().is_some_and(|schema| schema.starts_with("fanfare.")), "{line}");
        }
    }
    let listened = server.json(&["listen", "general", "--since-start", "--count", "1"]);
    assert_eq!(listened["schema"], "fanfare.message/v1");
    let missing = server.run(&["channel", "members", "nowhere", "--json"]);
    assert_eq!(missing.status.code(), Some(8));
    let error: Value = serde_json::from_str(&stderr(&missing)).expect("JSON on stderr");
    assert_eq!(error["code"], "FAN-R013");
    let ids = server.json(&["user", "ls"]);
    assert!(ids["users"][0]["user"].is_string(), "ids are decimal strings: {ids}");
}

#[test]
fn no_escape_sequence_reaches_what_is_not_a_terminal() {
    let server = Server::dev();
    server.ok(&["send", "general", "red \u{1b}[31m alert", "--as", "bob"]);
    for command in
        [&["channel", "history", "general"][..], &["status"], &["user", "ls"], &["explain", "1001"]]
    {
        let output = server.command(command).env("NO_COLOR", "1").env("TERM", "xterm-256color").output();
        let output = output.expect("the binary runs");
        assert!(
            !stdout(&output).contains('\u{1b}') && !stderr(&output).contains('\u{1b}'),
            "{}",
            stdout(&output)
        );
    }
    let failed = server.run(&["channel", "history", "nowhere"]);
    assert!(!stderr(&failed).contains('\u{1b}'));
}
