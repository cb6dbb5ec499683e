//! Presence between two clients of the real server: told at once, as it changes, and in the next session too.
//!
//! Needs `FANFARE_BIN`.
#![allow(clippy::unwrap_used)]

mod server;

use std::{collections::HashMap, time::Duration};

use fanfare_client::{Client, Event, Events, State};
use fanfare_proto::{
    Code, UserId,
    wire::{Attention, Audience, PresenceStatus},
};
use server::Server;

const WAIT: Duration = Duration::from_secs(20);

struct Viewer {
    client: Client,
    events: Events,
    view: HashMap<u64, PresenceStatus>,
    audience: Option<Audience>,
}

impl Viewer {
    async fn connect(server: &Server, name: &str, carrier: &str) -> (Self, UserId) {
        let url = match carrier {
            "quic" => format!("http://{}", server.http),
            _ => format!("ws://{}", server.listen),
        };
        let client = Client::builder(url).token(server.token(name)).connect().await.unwrap();
        let mut viewer = Self { events: client.events(), client, view: HashMap::new(), audience: None };
        let user = viewer.connected().await;
        (viewer, user)
    }

    async fn connected(&mut self) -> UserId {
        loop {
            if let State::Connected { user, .. } = self.client.state() {
                return user;
            }
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        match tokio::time::timeout(WAIT, self.events.next()).await.expect("something happens").unwrap() {
            Event::Presence(users) => {
                self.view.extend(users.iter().map(|user| (user.user, user.status())));
            }
            Event::SeenBy(audience) => self.audience = Some(audience),
            _ => {}
        }
    }

    async fn sees(&mut self, user: UserId, status: PresenceStatus) {
        while self.view.get(&user.0) != Some(&status) {
            self.turn().await;
        }
    }
}

async fn told(carrier: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mut server) = Server::new(scratch.path()) else { return };
    server.start();
    let (mut alice, _) = Viewer::connect(&server, "alice", carrier).await;
    let (mut bob, bob_id) = Viewer::connect(&server, "bob", carrier).await;
    let many: Vec<UserId> = (1..=257).map(UserId).collect();
    assert_eq!(alice.client.watch_users(&many), Err(Code::BAD_FIELD));
    alice.client.watch_users(&[bob_id]).unwrap();
    alice.sees(bob_id, PresenceStatus::Online).await;
    bob.client.seen_by(Audience::Nobody);
    while bob.audience != Some(Audience::Nobody) {
        bob.turn().await;
    }
    alice.sees(bob_id, PresenceStatus::NotTold).await;
    bob.client.seen_by(Audience::SharedChannels);
    alice.sees(bob_id, PresenceStatus::Online).await;
    bob.client.screen(Attention::Background, &[]);
    bob.client.screen(Attention::Foreground, &[]);
    bob.client.close().await;
    alice.sees(bob_id, PresenceStatus::Offline).await;

    // The list is said again to the server that came back.
    server.kill();
    server.start();
    alice.view.clear();
    let (bob, _) = Viewer::connect(&server, "bob", carrier).await;
    alice.sees(bob_id, PresenceStatus::Online).await;
    drop(bob);
}

#[tokio::test]
async fn who_is_watched_is_told_over_websocket() {
    told("ws").await;
}

#[tokio::test]
async fn who_is_watched_is_told_over_quic() {
    told("quic").await;
}
