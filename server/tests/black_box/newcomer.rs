//! What a newcomer does, with the real binary: from the banner to two people who chat, and back after a stop.

use std::{process::Stdio, time::Duration};

use crate::process::{PATIENCE, Server, lines, stderr, stdout, wait_for};
use rustix::process::Signal;

#[test]
fn from_the_banner_to_two_people_chatting() {
    let server = Server::dev();
    let admin = server.admin();
    assert_eq!(admin["dev"], true);

    let mut alice = server.command(&["listen", "general", "--count", "2"]);
    let mut alice = alice.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let heard = lines(alice.stdout.take().expect("piped"));
    wait_for(&lines(alice.stderr.take().expect("piped")), "listening");

    server.ok(&["send", "general", "hi from the shell", "--as", "bob"]);
    assert!(wait_for(&heard, "hi from the shell").contains("bob"));
    server.ok(&["send", "general", "über QUIC 😀", "--as", "carol", "--transport", "quic"]);
    assert!(wait_for(&heard, "über QUIC 😀").contains("carol"));
    assert!(alice.wait().expect("it ends after two").success());

    let history = server.json(&["channel", "history", "general"]);
    let said: Vec<_> =
        history["messages"].as_array().expect("messages").iter().map(|one| &one["text"]).collect();
    assert_eq!(said, ["hi from the shell", "über QUIC 😀"]);
}

#[test]
fn the_echo_bot_answers_direct_messages() {
    let server = Server::dev();
    let mut listen = server.command(&["listen", "@echo-bot", "--as", "dave", "--count", "2", "--json"]);
    let mut listen = listen.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let heard = lines(listen.stdout.take().expect("piped"));
    wait_for(&lines(listen.stderr.take().expect("piped")), "fanfare.listening/v1");
    server.ok(&["send", "@echo-bot", "anybody there?", "--as", "dave"]);
    let one = heard.recv_timeout(PATIENCE).expect("the own message");
    let two = heard.recv_timeout(PATIENCE).expect("the bot's answer");
    let both =
        [one, two].map(|line| serde_json::from_str::<serde_json::Value>(&line).expect("one object a line"));
    assert!(both.iter().all(|message| message["text"] == "anybody there?"), "{both:?}");
    assert_eq!(both[0]["sender_name"], "dave");
    assert_eq!(both[1]["sender_name"], "echo-bot");
    assert!(listen.wait().expect("it ends after two").success());
}

#[test]
fn a_stop_is_clean_and_a_restart_finds_everything() {
    let server = Server::dev();
    server.ok(&["send", "general", "before the stop", "--as", "bob"]);
    let token = server.ok(&["user", "token", "alice"]);
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
    let before = server.json(&["channel", "ls", "--as", "bob"]);

    // Somebody is connected: the stop does not wait for ever.
    let mut listener = server.command(&["listen", "general", "--as", "carol"]);
    let mut listener =
        listener.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for(&lines(listener.stderr.take().expect("piped")), "listening");
    let (folder, took) = server.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let _ = listener.kill();
    let _ = listener.wait();
    assert!(!folder.path().join("data/admin.json").exists(), "a clean stop takes admin.json away");

    let offline =
        crate::process::fanfare(&["reconcile", "--json", "--data"]).arg(folder.path().join("data")).output();
    let offline = offline.expect("the binary runs");
    assert!(offline.status.success(), "{}{}", stdout(&offline), stderr(&offline));

    let server = Server::on(folder, &["--dev"]);
    let history = server.json(&["channel", "history", "general", "--as", "dave"]);
    assert_eq!(history["messages"][0]["text"], "before the stop");
    assert_eq!(server.json(&["channel", "ls", "--as", "bob"]), before, "seeding twice changes nothing");
    let report = server.json(&["reconcile"]);
    assert_eq!(report["clean"], true, "{report}");
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let server = Server::dev();
    for number in 0..3 {
        server.ok(&["send", "general", &format!("message {number}"), "--as", "alice"]);
    }
    server.signal(Signal::KILL);
    let folder = server.abandon();
    let server = Server::on(folder, &["--dev"]);
    let history = server.json(&["channel", "history", "general", "--as", "bob"]);
    let said: Vec<_> =
        history["messages"].as_array().expect("messages").iter().map(|one| &one["text"]).collect();
    assert_eq!(said, ["message 0", "message 1", "message 2"]);
}

#[test]
fn sigterm_stops_as_ctrl_c_does() {
    let server = Server::dev();
    server.signal(Signal::TERM);
    let (_, took) = server.ended();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn an_operator_makes_people_and_groups_of_their_own() {
    let server = Server::dev();
    server.ok(&["user", "add", "zoe", "--full-delivery"]);
    let made = server.json(&["channel", "create", "plans", "--as", "zoe", "--members", "alice,bob"]);
    assert_eq!(made["name"], "plans");
    server.ok(&["send", "plans", "shall we?", "--as", "zoe"]);
    server.ok(&["send", "@zoe", "a word between us", "--as", "bob"]);
    let members = server.json(&["channel", "members", "plans", "--as", "alice"]);
    let names: Vec<_> =
        members["members"].as_array().expect("members").iter().map(|one| &one["name"]).collect();
    assert_eq!(names.len(), 3, "{members}");
    let unread = server.json(&["channel", "ls", "--as", "alice"]);
    assert!(
        unread["channels"]
            .as_array()
            .expect("channels")
            .iter()
            .any(|one| one["name"] == "plans" && one["unread"] == 1),
        "{unread}"
    );
    let direct = server.json(&["channel", "history", "@bob", "--as", "zoe"]);
    assert_eq!(direct["messages"][0]["text"], "a word between us");

    let outsider = server.run(&["channel", "history", "plans", "--as", "carol"]);
    assert_eq!(outsider.status.code(), Some(8), "{}", stderr(&outsider));
    let taken = server.run(&["user", "add", "zoe"]);
    assert_eq!(taken.status.code(), Some(1), "{}", stderr(&taken));
    assert!(stderr(&taken).contains("FAN-R014"), "{}", stderr(&taken));

    let mut listener = server.command(&["listen", "plans", "--as", "bob"]);
    let mut listener =
        listener.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    wait_for(&lines(listener.stderr.take().expect("piped")), "listening");
    let sessions = server.json(&["session", "ls", "--user", "bob"]);
    assert_eq!(sessions["sessions"].as_array().map(Vec::len), Some(1), "{sessions}");
    let _ = listener.kill();
    let _ = listener.wait();
}
