//! Messages as people and programs read them: newest body, who sent it and when.

use fanfare_client::Entry;
use fanfare_proto::{
    Code, Frame, MessageId, UserId,
    wire::{self, entry::Content},
};
use serde_json::{Value, json};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place.
    pub seq: u64,
    /// Its id; holds the time.
    pub id: MessageId,
    /// Who sent it.
    pub sender: UserId,
    /// Its text, of the newest edit; `None` where it is opaque, an attachment only, or gone.
    pub text: Option<String>,
    /// A later entry changed it.
    pub edited: bool,
    /// It was taken back.
    pub recalled: bool,
    /// The seq it answers, or 0.
    pub reply_to: u64,
    /// Reactions with their counts.
    pub reactions: Vec<(String, u32)>,
}

impl Message {
    /// Of an entry; `None` where it is not a message.
    pub fn of_entry(entry: &Entry) -> Option<Self> {
        // A stub has no content; only what counts as unread was a message.
        let body = match &entry.content {
            Some(Content::Message(body)) => Some(body),
            None if entry.stub && entry.counted => None,
            _ => return None,
        };
        Some(Self {
            seq: entry.seq,
            id: entry.id,
            sender: entry.sender,
            text: body.and_then(shown),
            edited: false,
            recalled: entry.stub,
            reply_to: body.map_or(0, |body| body.reply_to),
            reactions: Vec::new(),
        })
    }

    /// Applies its newest edit or recall.
    pub fn amend(&mut self, newest: &Entry) {
        match &newest.content {
            Some(Content::Edit(edit)) if !self.recalled => {
                (self.text, self.edited) = (edit.message.as_ref().and_then(shown), true);
            }
            Some(Content::Recall(_)) => (self.text, self.recalled) = (None, true),
            _ => {}
        }
    }

    /// As JSON; `sender_name` as the caller knows it.
    pub fn json(&self, sender_name: &str) -> Value {
        let reactions: Vec<Value> =
            self.reactions.iter().map(|(emoji, count)| json!({ "emoji": emoji, "count": count })).collect();
        json!({
            "seq": self.seq,
            "message": self.id.to_string(),
            "sender": self.sender.to_string(),
            "sender_name": sender_name,
            "time_ms": self.id.time_ms(),
            "time": crate::clock::rfc3339(self.id.time_ms()),
            "text": self.text,
            "edited": self.edited,
            "recalled": self.recalled,
            "reply_to": self.reply_to,
            "reactions": reactions,
        })
    }
}

/// The messages of the pages that answer one FETCH, oldest first, with their amendments applied.
///
/// # Errors
/// BAD_BODY where a frame does not decode.
pub fn messages(pages: &[wire::Page]) -> Result<Vec<Message>, Code> {
    let mut messages = Vec::new();
    for page in pages {
        add_page(page, &mut messages)?;
    }
    messages.sort_by_key(|message: &Message| message.seq);
    Ok(messages)
}

fn add_page(page: &wire::Page, messages: &mut Vec<Message>) -> Result<(), Code> {
    let begin = messages.len();
    for frame in Frame::iter(page.frames.clone()) {
        messages.extend(Message::of_entry(&Entry::decode(&frame?)?));
    }
    for amendment in &page.amendments {
        let Some(message) = messages[begin..].iter_mut().find(|message| message.seq == amendment.target)
        else {
            continue;
        };
        message.reactions = amendment.reactions.iter().map(|one| (one.emoji.clone(), one.count)).collect();
        for frame in Frame::iter(amendment.frame.clone()) {
            message.amend(&Entry::decode(&frame?)?);
        }
    }
    Ok(())
}

fn shown(body: &wire::Message) -> Option<String> {
    (!body.text.is_empty()).then(|| body.text.clone())
}
