//! The example `queue`, killed with -9 in the middle of its queue, and so is the server; both come back. Needs `FANFARE_BIN`.
#![cfg(feature = "disk")]
#![allow(clippy::unwrap_used)]

mod server;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use fanfare_client::Client;
use fanfare_proto::{ChannelId, wire};
use server::Server;

/// Lines, in three parts: each ends with a kill but the last.
const LINES: usize = 600;
/// Lines after which something is killed.
const KILLS: [usize; 4] = [60, 180, 300, 420];

/// The example, built as this test is: a run of this test alone would not have built it.
fn example() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().unwrap().parent().unwrap();
    let profile = match folder.file_name().and_then(|name| name.to_str()).unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "-p", "fanfare-client", "--example", "queue", "--profile", profile]);
    assert!(cargo.status().unwrap().success(), "the example does not build");
    folder.join("examples").join("queue")
}

struct Running {
    child: Child,
    said: mpsc::Receiver<String>,
}

impl Running {
    /// Starts it with lines to send.
    fn start(
        example: &Path,
        url: &str,
        token: &str,
        room: ChannelId,
        store: &Path,
        lines: Vec<String>,
    ) -> Self {
        let mut child = Command::new(example)
            .args([url, token, &room.to_string()])
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // It fails where the example dies first, which is the point.
        std::thread::spawn(move || lines.iter().all(|line| writeln!(input, "{line}").is_ok()));
        let output = BufReader::new(child.stdout.take().unwrap());
        let (say, said) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| say.send(line).is_ok()));
        Self { child, said }
    }

    /// SIGKILL; the rest of what it said.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.said.iter().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // None is left behind by a test that fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the example has said over all its lives.
#[derive(Default)]
struct Heard {
    queued: Vec<String>,
    sent: BTreeMap<String, u64>,
}

impl Heard {
    fn take(&mut self, line: &str) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["queued", text] => self.queued.push(text.into()),
            ["sent", text, seq] => {
                let seq = seq.parse().unwrap();
                let before = self.sent.insert(text.into(), seq);
                assert!(before.is_none_or(|before| before == seq), "{text} is at {before:?} and at {seq}");
            }
            _ => panic!("it said {line:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_survives_kills_of_both_sides() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::new(scratch.path()) else { return };
    server.start();
    let url = format!("ws://{}", server.listen);
    let token = server.token("alice");
    let alice = Client::builder(&url).token(&token).connect().await.unwrap();
    let group = wire::Group { name: "killed".into(), ..Default::default() };
    let room = alice.open_group(group).await.unwrap().id();
    alice.close().await;

    let store = scratch.path().join("queue.db");
    let lines: Vec<String> = (0..LINES).map(|number| format!("line-{number}")).collect();
    let mut heard = Heard::default();
    let example = example();
    let mut running = Running::start(&example, &url, &token, room, &store, lines.clone());
    for (kill, after) in KILLS.into_iter().enumerate() {
        // In the middle of it: some are sent, more are queued.
        while heard.sent.len() < after {
            heard.take(&running.said.recv_timeout(Duration::from_secs(60)).expect("it goes on"));
        }
        // The server, both, the program, both again: each comes back to what the other remembers.
        if kill != 2 {
            server.kill();
        }
        if kill != 0 {
            running.kill().iter().for_each(|line| heard.take(line));
            // A line may be in the store that it had no time to speak of; who starts it again looks there.
            let kept = kept_behind(&store, &heard.queued);
            heard.queued.extend(kept);
            let rest = lines[heard.queued.len()..].to_vec();
            running = Running::start(&example, &url, &token, room, &store, rest);
        }
        if kill != 2 {
            server.start();
        }
    }
    while let Ok(line) = running.said.recv_timeout(Duration::from_secs(60)) {
        heard.take(&line);
    }
    assert!(running.child.wait().unwrap().success());
    assert_eq!(heard.queued, lines, "what it said was queued, in order");

    let alice = Client::builder(&url).token(&token).connect().await.unwrap();
    let (mut before, mut all) = (0, BTreeMap::new());
    loop {
        let page = alice.history(room, before, 100).await.unwrap();
        let texts = page.entries.iter().filter_map(|entry| Some((entry.seq, entry.text()?.to_owned())));
        all.extend(texts);
        if page.complete || page.first <= 1 {
            break;
        }
        before = page.first;
    }
    assert!(all.values().eq(lines.iter()), "each exactly once, in order: {all:?}");
    for (seq, text) in &all {
        assert!(heard.sent.get(text).is_none_or(|said| said == seq), "what it said of {text} is so");
    }
}

/// Texts of the store's queue that come behind the last that was said to be queued.
fn kept_behind(store: &Path, said: &[String]) -> Vec<String> {
    use fanfare_client::{DiskStore, Store};
    use wire::send::Content;
    let saved = DiskStore::open(store).unwrap().load().unwrap();
    let texts = saved.sends.into_iter().filter_map(|send| match send.send.content {
        Some(Content::Message(message)) => Some(message.text),
        _ => None,
    });
    texts.filter(|text| !said.contains(text)).collect()
}
