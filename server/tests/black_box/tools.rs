//! The commands around a server: looking closely, checking a machine, and servers elsewhere.

use std::{
    io::Write,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

use crate::process::{PATIENCE, Server, fanfare, lines, stderr, stdout, wait_for};

/// Runs a command with that on its stdin.
fn fed(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

fn error_of(output: &Output) -> Value {
    let text = stderr(output);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn users_are_disabled_revoked_and_given_passwords() {
    let server = Server::dev();
    assert_eq!(server.json(&["user", "disable", "bob"])["disabled"], true);
    let listener =
        server.command(&["listen", "general", "--as", "bob", "--count", "1"]).output().expect("it runs");
    assert_eq!(listener.status.code(), Some(4), "{}", stderr(&listener));
    assert_eq!(server.json(&["user", "enable", "bob"])["disabled"], false);
    // In the same second too.
    let sent = server.command(&["send", "general", "back", "--as", "bob"]).output().expect("it runs");
    assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
    let set = fed(server.command(&["user", "password", "bob", "--json"]), "correct horse\n");
    assert_eq!(json_of(&set)["name"], "bob", "{}", stderr(&set));
    let short = fed(server.command(&["user", "password", "bob", "--json"]), "short\n");
    assert_eq!(error_of(&short)["number"], 3015);
    assert_eq!(server.json(&["user", "revoke", "bob"])["name"], "bob");
    let nobody = server.command(&["user", "revoke", "nobody", "--json"]).output().expect("it runs");
    assert_eq!(error_of(&nobody)["exit"], 8);
}

#[test]
fn sessions_are_kicked_and_devices_revoked() {
    let server = Server::dev();
    let mut listener = server.command(&["listen", "general", "--as", "bob"]);
    let mut listener =
        listener.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for(&lines(listener.stderr.take().expect("piped")), "listening");
    let sessions = server.json(&["session", "ls", "--user", "bob"]);
    let device = sessions["sessions"][0]["device"].as_str().expect("a device").to_owned();
    let devices = server.json(&["device", "ls", "--user", "bob"]);
    let row = |devices: &Value| {
        let rows = devices["devices"].as_array().expect("devices").clone();
        rows.into_iter().find(|row| row["device"] == device.as_str()).expect("the listener's device")
    };
    assert_eq!(row(&devices)["sessions"], 1, "{devices}");

    // Of another device nothing ends; of all devices the one session does, and its client does not come back by itself.
    assert_eq!(server.json(&["session", "kick", "--user", "bob", "--device", "5"])["ended"], 0);
    let kicked = server.json(&["session", "kick", "--user", "bob"]);
    assert_eq!(
        (kicked["schema"].as_str(), kicked["ended"].as_u64()),
        (Some("fanfare.session_kick/v1"), Some(1))
    );
    let status = listener.wait().expect("it ends");
    assert_eq!(status.code(), Some(4), "a kicked client is told that it was revoked");

    let revoked = server.json(&["device", "rm", "--user", "bob", &device]);
    assert_eq!(revoked["device"], device.as_str());
    assert_eq!(row(&server.json(&["device", "ls", "--user", "bob"]))["generation"], 1);
    for command in [
        &["device", "rm", "--user", "bob", "4711"][..],
        &["device", "ls", "--user", "nobody"],
        &["session", "kick", "--user", "nobody"],
    ] {
        let missing = server.run(command);
        assert_eq!(missing.status.code(), Some(8), "{command:?}: {}", stderr(&missing));
    }
}

#[test]
fn a_channel_is_shown_as_it_stands() {
    let server = Server::dev();
    server.ok(&["send", "general", "hi", "--as", "bob"]);
    let info = server.json(&["channel", "info", "general"]);
    assert_eq!((info["kind"].as_str(), info["members"].as_u64()), (Some("group"), Some(4)), "{info}");
    let (head, ordinal) = (info["head"].as_u64().expect("a head"), info["ordinal"].as_u64());
    assert!(head > 1 && ordinal == Some(1), "{info}");
    let by_id = server.json(&["channel", "info", info["channel"].as_str().expect("an id")]);
    assert_eq!(by_id["head"], head);
    server.ok(&["send", "@carol", "hi", "--as", "bob"]);
    let direct = server.json(&["channel", "info", "@carol", "--as", "bob"]);
    assert_eq!(direct["pair"].as_array().map(Vec::len), Some(2), "{direct}");
    assert!(server.ok(&["channel", "info", "@carol", "--as", "bob"]).contains("carol"));
    for unknown in ["nowhere", "12345"] {
        assert_eq!(server.run(&["channel", "info", unknown]).status.code(), Some(8));
    }
}

#[test]
fn a_token_is_checked_claim_by_claim_and_never_printed() {
    let server = Server::dev();
    let token = server.ok(&["user", "token", "alice"]).trim().to_owned();
    let check = |token: &str| {
        let output = fed(server.command(&["token", "check", "-", "--json"]), token);
        assert!(!stdout(&output).contains(token) && !stderr(&output).contains(token), "the token is printed");
        output
    };
    let good = check(&token);
    assert!(good.status.success(), "{}", stderr(&good));
    let good = json_of(&good);
    assert_eq!(
        (good["schema"].as_str(), good["accepted"].as_bool()),
        (Some("fanfare.token_check/v1"), Some(true))
    );

    // Somebody else's token: another server's key.
    let other = Server::dev();
    let foreign = other.ok(&["user", "token", "alice"]);
    let refused = check(foreign.trim());
    assert_eq!(refused.status.code(), Some(4), "{}", stderr(&refused));
    assert_eq!(json_of(&refused)["accepted"], false);
    let error = error_of(&refused);
    assert_eq!(error["code"], "FAN-A004");
    assert!(error["what"].as_str().is_some_and(|what| what.contains("kid")), "{error}");
    let broken = check("not-a-token");
    assert_eq!((broken.status.code(), &error_of(&broken)["code"]), (Some(4), &Value::from("FAN-A002")));

    // Without a server the folder's own key decides, and another audience is another deployment.
    let (folder, _) = server.stop();
    let offline = |audience: &str| {
        let mut command = fanfare(&["token", "check", "-", "--json"]);
        command.arg("--data").arg(folder.path().join("data")).env("FANFARE__TOKENS__AUDIENCE", audience);
        fed(command, &token)
    };
    let fits = offline("fanfare");
    assert!(fits.status.success(), "{}", stderr(&fits));
    let elsewhere = offline("somewhere");
    assert_eq!(elsewhere.status.code(), Some(4));
    let error = error_of(&elsewhere);
    assert_eq!(error["code"], "FAN-A005");
    assert!(error["what"].as_str().is_some_and(|what| what.contains("aud is fanfare")), "{error}");

    // With neither, the claims alone are read.
    let nowhere = tempfile::tempdir().expect("a scratch folder");
    let mut command = fanfare(&["token", "check", "-", "--json"]);
    command.current_dir(nowhere.path());
    let unverified = fed(command, &token);
    assert!(unverified.status.success(), "{}", stderr(&unverified));
    assert_eq!(json_of(&unverified)["accepted"], Value::Null);
    assert_eq!(std::fs::read_dir(nowhere.path()).expect("readable").count(), 0, "nothing was made");
}

#[test]
fn frames_are_decoded_up_to_where_they_stop() {
    const PING: &str = "0400000009000000097b1efd7a9a010000";
    let good = fanfare(&["decode", PING, "--json"]).output().expect("the binary runs");
    let frames = json_of(&good);
    assert_eq!(frames["frames"][0]["body"]["time_ms"], "1763000000123", "{frames}");
    let two = fed(fanfare(&["decode", "-", "--from", "client"]), &format!("{PING}\n{PING}\n"));
    assert_eq!(stdout(&two).matches("PING").count(), 2);

    let cut = fanfare(&["decode", &format!("{PING}04"), "--json"]).output().expect("the binary runs");
    assert_eq!(cut.status.code(), Some(1));
    assert_eq!(json_of(&cut)["frames"].as_array().map(Vec::len), Some(1), "what was whole is shown");
    let error = error_of(&cut);
    assert_eq!(error["code"], "FAN-P010");
    assert!(error["what"].as_str().is_some_and(|what| what.contains("byte 18 of 18")), "{error}");
    let side = fanfare(&["decode", PING, "--from", "server", "--json"]).output().expect("the binary runs");
    assert_eq!(error_of(&side)["code"], "FAN-P001");
    for bad in ["04zz", "040", ""] {
        let output = fanfare(&["decode", bad]).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{bad}: {}", stderr(&output));
    }
}

#[test]
fn shells_complete_and_examples_are_shown_without_a_server() {
    let nowhere = tempfile::tempdir().expect("a scratch folder");
    let run = |arguments: &[&str]| {
        fanfare(arguments).current_dir(nowhere.path()).output().expect("the binary runs")
    };
    for (shell, mark) in
        [("bash", "complete -F"), ("zsh", "#compdef fanfare"), ("fish", "complete -c fanfare")]
    {
        let script = run(&["completions", shell]);
        assert!(script.status.success() && stdout(&script).contains(mark), "{shell}");
        assert!(stdout(&script).contains("doctor"), "{shell}");
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), Some(2));
    assert!(stdout(&run(&["cheat", "people"])).contains("fanfare token check -"));
    assert!(json_of(&run(&["cheat", "--json"]))["examples"].as_array().is_some_and(|all| all.len() > 20));
    let unknown = run(&["cheat", "poeple"]);
    assert!(unknown.status.code() == Some(8) && stderr(&unknown).contains("fanfare cheat people"));
    assert!(stdout(&run(&["config", "docs"])).contains("| `gateway.listen` |"));
    assert_eq!(json_of(&run(&["config", "docs", "--json"]))["schema"], "fanfare.keys/v1");
    assert_eq!(std::fs::read_dir(nowhere.path()).expect("readable").count(), 0, "nothing was made");
}

fn finding<'a>(report: &'a Value, what: &str) -> &'a Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["what"] == what).unwrap_or_else(|| panic!("no {what} in {report}"))
}

#[test]
fn doctor_passes_a_dev_server_and_names_what_is_wrong_elsewhere() {
    let server = Server::dev();
    let admin = server.admin();
    let fit = server
        .command(&["doctor", "--json"])
        .env("FANFARE__GATEWAY__LISTEN", admin["gateway"].as_str().expect("an address"))
        .env("FANFARE__HTTP__LISTEN", admin["address"].as_str().expect("an address"))
        .output()
        .expect("the binary runs");
    let report = json_of(&fit);
    assert!(fit.status.success() && report["failed"] == 0, "{report}");
    for held in ["QUIC (UDP)", "WebSocket (TCP)", "HTTP (TCP)"] {
        let detail = finding(&report, held)["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains("held by this folder's server"), "{detail}");
    }

    let folder = tempfile::tempdir().expect("a scratch folder");
    let data = folder.path().join("data");
    std::fs::create_dir(&data).expect("made");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).expect("set");
    let run = |arguments: &[&str], port: u16| {
        fanfare(arguments)
            .arg("--data")
            .arg(&data)
            .env("FANFARE__HTTP__LISTEN", format!("127.0.0.1:{port}"))
            .env("FANFARE__GATEWAY__LISTEN", "127.0.0.1:0")
            .current_dir(folder.path())
            .output()
            .expect("the binary runs")
    };
    let open = run(&["doctor", "--only", "folder", "--json"], 0);
    let mode = json_of(&open);
    assert!(open.status.success(), "a warning fails nothing: {mode}");
    assert_eq!(finding(&mode, "folder mode")["code"], "FAN-D002");
    assert!(finding(&mode, "folder mode")["fix"].as_str().is_some_and(|fix| fix.starts_with("chmod 700 ")));

    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("bound").port();
    let taken = run(&["doctor", "--only", "ports", "--json"], port);
    assert_eq!(taken.status.code(), Some(5), "{}", stdout(&taken));
    assert_eq!(finding(&json_of(&taken), "HTTP (TCP)")["code"], "FAN-D007");
    let reachable = fanfare(&["doctor", "--only", "ports", "--json", "--data"])
        .arg(&data)
        .env("FANFARE__HTTP__LISTEN", "0.0.0.0:0")
        .env("FANFARE__GATEWAY__LISTEN", "127.0.0.1:0")
        .current_dir(folder.path())
        .output()
        .expect("the binary runs");
    assert_eq!(finding(&json_of(&reachable), "HTTP")["code"], "FAN-D012");

    std::fs::write(folder.path().join("fanfare.toml"), "[gateway]\nlistn = ':1'\n").expect("written");
    let wrong = run(&["doctor", "--only", "configuration"], 0);
    assert_eq!(wrong.status.code(), Some(5));
    assert!(stdout(&wrong).contains("FAN-D011") && stdout(&wrong).contains("fanfare config check"));
    assert_eq!(run(&["doctor", "--only", "everything"], 0).status.code(), Some(2));
    assert_eq!(std::fs::read_dir(&data).expect("readable").count(), 0, "doctor leaves nothing behind");
}

#[test]
fn a_message_is_traced_to_its_place_its_bytes_and_its_readers() {
    let server = Server::dev();
    let sent = server.json(&["send", "general", "where am I?", "--as", "bob"]);
    let id = sent["message"].as_str().expect("an id").to_owned();
    let mut listener =
        server.command(&["listen", "general", "--as", "carol", "--since-start", "--count", "1"]);
    assert!(listener.output().expect("the binary runs").status.success());
    let trace = server.json(&["trace", &id]);
    assert_eq!((&trace["seq"], &trace["sender_name"]), (&sent["seq"], &Value::from("bob")), "{trace}");
    assert_eq!((trace["kind"].as_str(), trace["ordinal"].as_u64()), (Some("message"), Some(1)));
    assert_eq!(trace["stored"]["metadata"], true);
    assert!(trace["stored"]["content"] == true || trace["stored"]["outbox"] == true, "{trace}");
    assert_ne!(trace["stored"]["hash_matches"], false);
    assert_eq!(trace["members_total"], 4);
    let members = trace["members"].as_array().expect("members");
    let bob = members.iter().find(|member| member["name"] == "bob").expect("bob");
    assert!(bob["sender"] == true && bob["delivered"] == true, "{trace}");
    let alice = members.iter().find(|member| member["name"] == "alice").expect("alice");
    assert!(alice["delivered"] == false && alice["read"] == false, "{trace}");
    assert!(server.ok(&["trace", &id]).contains("bob -> #general"));
    assert_eq!(server.run(&["trace", "42"]).status.code(), Some(8));
    assert_eq!(server.run(&["trace", "id"]).status.code(), Some(2));
}

#[test]
fn top_prints_what_the_server_does() {
    let server = Server::dev();
    let human = server.ok(&["top", "--interval", "100ms", "--count", "2"]);
    assert_eq!(human.lines().count(), 3, "a head and two lines: {human}");
    assert!(!human.contains('\u{1b}'), "nothing is redrawn where there is no terminal");
    let json = server.ok(&["top", "--interval", "100ms", "--count", "2", "--json"]);
    let samples: Vec<Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect();
    assert_eq!(samples.len(), 2);
    for sample in samples {
        assert_eq!(sample["schema"], "fanfare.top/v1");
        assert!(sample["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{sample}");
        assert!(sample["sends_per_s"].is_number() && sample["sessions"].is_number(), "{sample}");
    }
    assert_eq!(server.run(&["top", "--count", "0"]).status.code(), Some(2));
    let nowhere = tempfile::tempdir().expect("a scratch folder");
    let none = fanfare(&["top", "--count", "1"]).current_dir(nowhere.path()).output();
    assert_eq!(none.expect("the binary runs").status.code(), Some(3));
}

#[test]
fn top_counts_what_is_sent_and_what_is_delivered() {
    let server = Server::dev();
    let mut listener = server.command(&["listen", "general", "--as", "carol"]);
    let mut listener =
        listener.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for(&lines(listener.stderr.take().expect("piped")), "listening");
    let mut top = server.command(&["top", "--interval", "100ms", "--json"]);
    let mut top = top.stdout(Stdio::piped()).spawn().expect("the binary runs");
    let samples = lines(top.stdout.take().expect("piped"));
    let next = || -> Value {
        let line = samples.recv_timeout(PATIENCE).expect("another line");
        serde_json::from_str(&line).expect("one object a line")
    };
    let first = next();
    assert!(first["sessions"].as_u64().is_some_and(|sessions| sessions >= 1), "{first}");
    server.ok(&["send", "general", "counted", "--as", "bob"]);
    let (mut sent, mut delivered) = (false, false);
    while !(sent && delivered) {
        let sample = next();
        sent |= sample["sends_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
        delivered |= sample["deliveries_per_s"].as_f64().is_some_and(|rate| rate > 0.0);
    }
    for child in [&mut listener, &mut top] {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A command of somebody whose contexts are kept there.
fn with_contexts(home: &Path, arguments: &[&str]) -> Output {
    let mut command = fanfare(arguments);
    command.current_dir(home).env("XDG_CONFIG_HOME", home.join("config"));
    command.output().expect("the binary runs")
}

#[test]
fn contexts_reach_servers_elsewhere_and_unknown_ones_reach_none() {
    let server = Server::dev();
    let admin = server.admin();
    let home = tempfile::tempdir().expect("a scratch folder");
    let token = admin["token"].as_str().expect("a token");
    std::fs::write(home.path().join("token"), format!("{token}\n")).expect("written");
    let url = format!("http://{}", admin["address"].as_str().expect("an address"));
    let run = |arguments: &[&str]| with_contexts(home.path(), arguments);

    let added = run(&["context", "add", "prod", "--admin", &url, "--token-file", "token"]);
    assert!(added.status.success(), "{}", stderr(&added));
    assert!(stderr(&added).contains("chmod 600"), "others may read the token: {}", stderr(&added));
    let file = home.path().join("config/fanfare/contexts.toml");
    assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    assert!(
        !std::fs::read_to_string(&file).expect("readable").contains(token),
        "the token stays in its file"
    );

    // By name, and a command that changes something says where.
    let made = run(&["-c", "prod", "user", "add", "erin"]);
    assert!(made.status.success(), "{}", stderr(&made));
    let target = format!("target: prod ({})", admin["address"].as_str().expect("an address"));
    assert!(stderr(&made).contains(&target), "{}", stderr(&made));
    let sent = run(&["send", "general", "from afar", "--as", "bob", "-c", "prod", "--json"]);
    assert!(sent.status.success(), "{}", stderr(&sent));
    assert!(stderr(&sent).contains("fanfare.target/v1"), "{}", stderr(&sent));
    let listed = run(&["user", "ls", "-c", "prod"]);
    assert!(stdout(&listed).contains("erin") && !stderr(&listed).contains("target"));

    // An unknown name is never another server, also where a folder's server would be found.
    for unknown in
        [&["-c", "prd", "status"][..], &["version", "--context", "prd"], &["context", "use", "prd"]]
    {
        let output = run(unknown);
        assert_eq!(output.status.code(), Some(2), "{unknown:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("no context `prd`"), "{}", stderr(&output));
    }
    assert_eq!(run(&["-c", "prod", "doctor"]).status.code(), Some(2), "doctor looks at this machine");
    assert_eq!(run(&["-c", "prod", "status", "--data", "x"]).status.code(), Some(2));

    // The current one is asked where nothing is said, and given up again.
    assert_eq!(run(&["status"]).status.code(), Some(3));
    assert!(run(&["context", "use", "prod"]).status.success());
    assert!(run(&["status"]).status.success());
    assert_eq!(json_of(&run(&["context", "ls", "--json"]))["contexts"][0]["current"], true);
    let shown = stdout(&run(&["context", "show"]));
    assert!(shown.contains("a token is there") && !shown.contains(token), "{shown}");
    assert!(run(&["context", "use", "--none"]).status.success());
    assert_eq!(run(&["status"]).status.code(), Some(3));

    // A wrong token is refused; a server that has gone is not reached.
    std::fs::write(home.path().join("token"), "wrong").expect("written");
    assert_eq!(run(&["-c", "prod", "status"]).status.code(), Some(4));
    std::fs::write(home.path().join("token"), token).expect("written");
    let _ = server.stop();
    assert_eq!(run(&["-c", "prod", "status"]).status.code(), Some(3));
    assert!(run(&["context", "rm", "prod"]).status.success());
    assert_eq!(run(&["context", "rm", "prod"]).status.code(), Some(2));
    assert_eq!(
        run(&["context", "add", "x", "--admin", "https://a", "--token-file", "t"]).status.code(),
        Some(2)
    );
}
