//! The demo's bot: a client like any other, in this process. It answers direct messages with the same text.

use std::{sync::Arc, time::Duration};

use fanfare_client::{Client, Entry, Event, Events, TokenError};
use fanfare_proto::{ChannelId, DeviceId, wire::ChannelKind};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{failure::Outcome, node::NodeState, seed::BOT};

/// Its one device, the same at every start, so that the server knows what it has answered.
const DEVICE: DeviceId = DeviceId(1);
/// Life of its tokens; it gets fresh ones by itself.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// The running bot.
#[derive(Debug)]
pub struct EchoBot {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl EchoBot {
    /// Connects and answers from here on.
    ///
    /// # Errors
    /// The bot's user is not there.
    pub async fn start(node: &Arc<NodeState>) -> Outcome<Self> {
        let administration = node.administration.clone();
        let user = administration.user(BOT).await?;
        let token = move || {
            let issued = administration.token(&user, TOKEN_TTL);
            async move { issued.map(|issued| issued.token).map_err(|error| TokenError::Unavailable(error.what)) }
        };
        let client = Client::builder(format!("ws://{}:{}", node.public_host(), node.gateway.port()))
            .token_from(token)
            .device(DEVICE, "the server itself")
            .agent(concat!("fanfare-echo-bot/", env!("CARGO_PKG_VERSION")));
        // It connects, and comes back, by itself: the server's start does not wait for it.
        let client = client.start();
        let events = client.events();
        let stop = CancellationToken::new();
        let task = tokio::spawn(answer(client, events, stop.clone()));
        Ok(Self { stop, task })
    }

    /// Ends it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn answer(client: Client, mut events: Events, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            Some(Event::Entry(entry)) => answer_entry(&client, &entry),
            Some(_) => {}
            None => break,
        }
    }
    client.close().await;
}

fn answer_entry(client: &Client, entry: &Entry) {
    let Some(state) = client.channel_state(entry.channel) else { return };
    let is_direct = state.kind == ChannelKind::Direct as i32;
    // What it has read it has answered; what it sent itself comes back like anything else.
    if !is_direct || Some(entry.sender) == client.user() || entry.seq <= state.read {
        return;
    }
    if let Some(text) = entry.text() {
        client.send_text(ChannelId(state.channel), text);
        client.mark_read(entry.channel, entry.seq, entry.ordinal);
    }
}
