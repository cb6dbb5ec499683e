//! A bot that echoes: `cargo run -p fanfare-client --example hello -- http://127.0.0.1:7080 TOKEN`.
//! It answers every text that others send in its channels.

use anyhow::{Context, Result};
use fanfare_client::{Client, Event, State};

const ANSWER: &str = "You said: ";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().context("usage: hello URL TOKEN")?;
    let token = arguments.next().context("usage: hello URL TOKEN (fanfare user token NAME prints one)")?;

    let client = Client::builder(url).token(token).agent("hello-bot/1").connect().await?;
    let mut events = client.events();
    let me = client.user();
    println!("connected as {me:?}");

    while let Some(event) = events.next().await {
        match event {
            Event::Entry(entry) if Some(entry.sender) != me => {
                // Answers are not answered: two bots in one channel would never end.
                let Some(text) = entry.text().filter(|text| !text.starts_with(ANSWER)) else { continue };
                println!("{}: {text}", entry.sender);
                let handle = client.send_text(entry.channel, format!("{ANSWER}{text}"));
                tokio::spawn(async move {
                    match handle.sent().await {
                        Ok(sent) => println!("answered as entry {}", sent.seq),
                        Err(error) => println!("not answered: {error}"),
                    }
                });
            }
            Event::State(State::Closed { code, reason }) => {
                println!("closed: {code:?} {reason}");
                break;
            }
            Event::State(state) => println!("{state:?}"),
            _ => {}
        }
    }
    Ok(())
}
