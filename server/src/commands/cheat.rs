//! `fanfare cheat`: worked examples by topic. Each is a command line that this binary understands; a test parses them.

use fanfare_proto::Code;
use serde_json::json;

use crate::{
    config::nearest,
    failure::{Failure, Outcome, exit},
    output::Output,
};

/// A topic with its examples: what for, and the line.
pub struct Topic {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// (line, what it does).
    pub examples: &'static [(&'static str, &'static str)],
}

/// All topics.
pub const TOPICS: &[Topic] = &[
    Topic {
        name: "start",
        about: "Run a server",
        examples: &[
            ("fanfare start --dev", "on this machine, with people to try it with"),
            ("fanfare start --listen 127.0.0.1:0 --http 127.0.0.1:0", "on free ports, printed"),
            ("fanfare start --data ./other", "a second, separate server"),
            ("fanfare setup --data /var/lib/fanfare", "make the folder and its keys, start nothing"),
        ],
    },
    Topic {
        name: "chat",
        about: "Say something, and hear it",
        examples: &[
            ("fanfare listen general", "what is said, as it comes"),
            ("fanfare send general \"hi\" --as bob", "into a group"),
            ("fanfare send @carol \"hello\" --as bob --transport quic", "to one person, over QUIC"),
            ("fanfare listen general --since-start --count 10 --json", "the first ten, for a program"),
        ],
    },
    Topic {
        name: "people",
        about: "Users, tokens, devices, sessions",
        examples: &[
            ("fanfare user add erin", "make a user"),
            ("fanfare user token erin --ttl 15m", "a token for a client"),
            ("fanfare user token erin | fanfare token check -", "would it be accepted, and why not"),
            ("fanfare admin link", "a link, good once, that makes an administrator"),
            ("fanfare user export erin > erin.ndjson", "everything the server holds about a user"),
            ("fanfare session ls --user erin", "who is connected"),
            ("fanfare session kick --user erin", "end the sessions; the client signs in again"),
            ("fanfare device ls --user erin", "where a user has signed in from"),
            ("fanfare device rm --user erin 4711", "a lost phone: it cannot resume any more"),
        ],
    },
    Topic {
        name: "channels",
        about: "Groups and what was said",
        examples: &[
            ("fanfare channel create garden --as erin --members alice,bob", "make a group"),
            ("fanfare channel ls --as alice", "a user's channels, with what is unread"),
            ("fanfare channel info general", "head, members, listeners"),
            ("fanfare channel members general", "who is in it, and how far each has got"),
            ("fanfare channel history general --limit 20", "the newest messages"),
        ],
    },
    Topic {
        name: "look",
        about: "Find out what happens",
        examples: &[
            ("fanfare status", "ready or not, and why"),
            ("fanfare top --interval 2s", "sends, deliveries, memory, as they change"),
            ("fanfare trace 239012345678901234", "where one message is, and who has it"),
            ("fanfare decode 0400000009000000097b1efd7a9a010000", "bytes of the wire as fields"),
            ("fanfare explain FAN-A003", "what a number means"),
            ("fanfare reconcile", "walk metadata against content"),
        ],
    },
    Topic {
        name: "machine",
        about: "Is this machine fit, is the configuration right",
        examples: &[
            ("fanfare doctor", "every check, with the command that fixes it"),
            ("fanfare doctor --only udp,ports --json", "some of them, for a program"),
            ("fanfare config check", "mistakes with file and line"),
            ("fanfare config show --origin", "each value, and where it comes from"),
            ("fanfare config docs", "every key there is"),
        ],
    },
    Topic {
        name: "context",
        about: "Ask a server elsewhere",
        examples: &[
            (
                "fanfare context add prod --admin http://127.0.0.1:7080 --token-file ~/.fanfare-prod",
                "name it; the token stays in its file",
            ),
            ("fanfare status -c prod", "ask it once"),
            ("fanfare context use prod", "ask it from now on"),
            ("fanfare context use --none", "ask this machine's folder again"),
        ],
    },
    Topic {
        name: "shell",
        about: "Completion, and output for programs",
        examples: &[
            ("fanfare completions bash > ~/.local/share/bash-completion/completions/fanfare", "for bash"),
            ("fanfare completions zsh > ~/.zfunc/_fanfare", "for zsh"),
            ("fanfare completions fish > ~/.config/fish/completions/fanfare.fish", "for fish"),
            ("fanfare user ls -o ndjson", "one object a line"),
        ],
    },
];

/// Prints a topic, or all.
pub fn run(output: Output, topic: Option<&str>) -> Outcome<u8> {
    let shown: Vec<&Topic> = match topic {
        None => TOPICS.iter().collect(),
        Some(name) => {
            let found = TOPICS.iter().find(|topic| topic.name.eq_ignore_ascii_case(name));
            vec![found.ok_or_else(|| unknown(name))?]
        }
    };
    let items = shown.iter().flat_map(|topic| {
        topic
            .examples
            .iter()
            .map(|(line, what)| json!({ "topic": topic.name, "command": line, "what": what }))
    });
    output.list("examples", "example", items.collect(), || {
        let parts: Vec<String> = shown.iter().map(|topic| human(topic)).collect();
        parts.join("\n\n")
    });
    Ok(exit::OK)
}

fn human(topic: &Topic) -> String {
    let mut lines = vec![format!("{}: {}", topic.name, topic.about)];
    let width = topic.examples.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(64);
    lines.extend(topic.examples.iter().map(|(line, what)| format!("  {line:width$}  # {what}")));
    lines.join("\n")
}

fn unknown(name: &str) -> Failure {
    let names: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
    let mut failure = Failure::new(Code::NO_SUCH_NAME, format!("there are no examples about `{name}`"))
        .why(format!("topics: {}", names.join(", ")));
    if let Some(near) = nearest(name, names.into_iter()) {
        failure = failure.advise(format!("fanfare cheat {near}"), "perhaps this one");
    }
    failure.advise("fanfare cheat", "prints all of them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::docs::lines::parse;

    #[test]
    fn every_example_is_a_command_that_exists() {
        for topic in TOPICS {
            assert!(!topic.examples.is_empty());
            for (line, _) in topic.examples {
                assert!(parse(line).unwrap_or_else(|error| panic!("{line}: {error}")) > 0, "{line}");
            }
        }
        assert!(parse("fanfare sned general hi").is_err() && parse("fanfare send general").is_err());
    }
}
