//! Sends every line of its input to a channel, and keeps its queue on disk: killed with -9 and started again, or its server, it goes on where it
//! stood, and every line is sent exactly once, in order.
//!
//! `seq 1000 | cargo run -p fanfare-client --example queue -- ws://127.0.0.1:7443 TOKEN CHANNEL chat.db`
//!
//! It prints `queued LINE` once a line is on disk (what was printed is never lost), `sent LINE SEQ` once it is committed, and ends
//! when the queue is empty.

use std::{io::BufRead, time::Duration};

use anyhow::{Context, Result};
use fanfare_client::{
    Client, DiskStore, SendError, SendHandle, proto::ChannelId, proto::wire::send::Content,
};

#[tokio::main]
async fn main() -> Result<()> {
    let usage = "usage: queue URL TOKEN CHANNEL STORE";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, token, channel, store] = &arguments[..] else { anyhow::bail!(usage) };
    let channel = ChannelId(channel.parse().context(usage)?);

    let client = Client::builder(url).token(token).store(DiskStore::open(store)?).agent("queue/1").start();
    // What an earlier life of this program left is on its way already.
    for handle in client.queue() {
        report(handle);
    }
    let (lines_in, mut lines) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        let all = std::io::stdin().lock().lines().map_while(Result::ok);
        all.for_each(|line| drop(lines_in.blocking_send(line)));
    });
    while let Some(line) = lines.recv().await {
        let handle = loop {
            let handle = client.send_text(channel, &line);
            match handle.status() {
                fanfare_client::Status::Failed(SendError::QueueFull) => {
                    // There is room once the oldest is committed.
                    let oldest = client.queue().into_iter().next();
                    if let Some(oldest) = oldest {
                        let _ = oldest.sent().await;
                    }
                }
                fanfare_client::Status::Failed(error) => return Err(error.into()),
                _ => break handle,
            }
        };
        println!("queued {line}");
        report(handle);
    }
    while !client.flush(Duration::from_secs(60)).await {}
    client.close().await;
    Ok(())
}

/// Prints what becomes of one.
fn report(handle: SendHandle) {
    tokio::spawn(async move {
        let line = match handle.content() {
            Content::Message(message) => message.text.clone(),
            _ => String::new(),
        };
        match handle.sent().await {
            Ok(sent) => println!("sent {line} {}", sent.seq),
            Err(error) => println!("failed {line}: {error}"),
        }
    });
}
