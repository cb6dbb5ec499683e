//! What goes to the receiver: the body, and the headers that prove where it comes from, in the form of Standard Webhooks.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fanfare_storage::push::Push;
use serde::Serialize;

use crate::{clock, webhook_keys::Signer};

/// What a secret begins with where it is written down.
pub const SECRET_PREFIX: &str = "whsec_";
/// Secrets that sign at once, while one takes over from another.
pub const SECRETS_MAX: usize = 4;
/// Bytes of a secret.
pub const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Bytes of a message's text in a preview.
pub const PREVIEW_BYTES_MAX: usize = 240;

/// The body.
#[derive(Debug, Serialize)]
pub struct Letter<'a> {
    r#type: String,
    /// When the message was sent.
    timestamp: String,
    data: Data<'a>,
}

#[derive(Debug, Serialize)]
struct Data<'a> {
    key: String,
    user: String,
    channel: String,
    epoch: u32,
    seq: u64,
    message: String,
    sender: String,
    unread: u64,
    badge: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    preview: Option<&'a Preview>,
}

/// What content there is in a push, where the configuration allows any.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Preview {
    /// Who sent it.
    pub sender_name: String,
    /// Empty for direct channels.
    pub channel_name: String,
    /// Its text as it stands now, shortened; empty where it is opaque or only an attachment.
    pub text: String,
}

impl<'a> Letter<'a> {
    /// Of a push, with what counts now.
    pub fn of(push: &Push, unread: u64, badge: u64, preview: Option<&'a Preview>) -> Self {
        Self {
            r#type: format!("push.{}", push.kind.name()),
            timestamp: clock::rfc3339(push.message_id.time_ms()),
            data: Data {
                key: push.key.to_string(),
                user: push.key.user.to_string(),
                channel: push.key.channel.to_string(),
                epoch: push.key.epoch,
                seq: push.key.seq,
                message: push.message_id.to_string(),
                sender: push.sender.to_string(),
                unread,
                badge,
                preview,
            },
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Bytes {
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }
}

/// A text's beginning, not longer than a preview may be, cut between characters.
pub fn shortened(text: &str) -> String {
    if text.len() <= PREVIEW_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(PREVIEW_BYTES_MAX - '…'.len_utf8());
    format!("{}…", &text[..end])
}

/// The secrets of a file's lines: `whsec_` and base64 each. The first is the newest.
///
/// # Errors
/// What is wrong, without the secret.
pub fn secrets(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() || lines.len() > SECRETS_MAX {
        return Err(format!("{} secrets where 1 to {SECRETS_MAX} are expected, one a line", lines.len()));
    }
    let secret = |(number, line): (usize, &&str)| {
        let decoded = line.strip_prefix(SECRET_PREFIX).and_then(|rest| STANDARD.decode(rest).ok());
        decoded.filter(|bytes| SECRET_BYTES.contains(&bytes.len())).ok_or_else(|| {
            format!("secret {} is not {SECRET_PREFIX} and base64 of 24 to 64 bytes", number + 1)
        })
    };
    lines.iter().enumerate().map(secret).collect()
}

/// A secret as it is written down.
pub fn shown_secret(secret: &[u8]) -> String {
    format!("{SECRET_PREFIX}{}", STANDARD.encode(secret))
}

/// The headers of one attempt: `webhook-id` (the deduplication key), `webhook-timestamp`, `webhook-signature` with one signature by
/// each secret and one by the published key, and which key that is.
pub fn headers(
    id: &str,
    now_s: u64,
    body: &[u8],
    secrets: &[Vec<u8>],
    signer: Option<&Signer>,
) -> Vec<(&'static str, String)> {
    let signed = [id.as_bytes(), b".", now_s.to_string().as_bytes(), b".", body].concat();
    let mut signatures: Vec<String> = secrets
        .iter()
        .map(|secret| {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &signed);
            format!("v1,{}", STANDARD.encode(tag))
        })
        .collect();
    signatures.extend(signer.map(|signer| format!("v1a,{}", STANDARD.encode(signer.sign(&signed)))));
    let mut headers = vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", now_s.to_string()),
        ("webhook-signature", signatures.join(" ")),
    ];
    headers.extend(signer.map(|signer| ("webhook-key-id", signer.kid().to_owned())));
    headers
}

#[cfg(test)]
mod tests {
    use fanfare_proto::{ChannelId, MessageId, UserId};
    use fanfare_storage::push::{PushKey, PushKind};

    use super::*;

    /// The example that the specification of Standard Webhooks gives for its symmetric signatures.
    #[test]
    fn signatures_are_those_of_standard_webhooks() {
        let secret = secrets("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        let found = headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body, &secret, None);
        assert_eq!(
            found[2],
            ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned())
        );
        assert_eq!(found[1].1, "1614265330");
    }

    #[test]
    fn secrets_are_read_line_by_line_and_nothing_odd_is_taken() {
        let (one, two) = (shown_secret(&[7; 32]), shown_secret(&[8; 24]));
        assert_eq!(secrets(&format!("{one}\n\n  {two}\n")), Ok(vec![vec![7; 32], vec![8; 24]]));
        for odd in ["", "\n", "whsec_", "secret", &one[6..], "whsec_AAAA", &[one.as_str(); 5].join("\n")] {
            let error = secrets(odd).expect_err(odd);
            assert!(!error.contains("BwcH"), "{error}");
        }
    }

    #[test]
    fn a_body_without_a_preview_has_no_content() {
        let push = Push {
            key: PushKey { user: UserId(1), channel: ChannelId(2), epoch: 3, seq: 4 },
            kind: PushKind::Mention,
            sender: UserId(5),
            message_id: MessageId(6),
            created_ms: 0,
            due_ms: 0,
            attempts: 0,
            error: String::new(),
        };
        let bare = String::from_utf8(Letter::of(&push, 7, 8, None).bytes().to_vec()).expect("text");
        assert!(bare.contains(r#""key":"1-2-3-4""#) && bare.contains(r#""type":"push.mention""#), "{bare}");
        assert!(bare.contains(r#""badge":8"#) && !bare.contains("preview"), "{bare}");
        let preview = Preview { sender_name: "b".into(), channel_name: String::new(), text: "hi".into() };
        let full = String::from_utf8(Letter::of(&push, 7, 8, Some(&preview)).bytes().to_vec()).expect("text");
        assert!(full.contains(r#""text":"hi""#), "{full}");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = "é".repeat(PREVIEW_BYTES_MAX);
        let short = shortened(&long);
        assert!(short.len() <= PREVIEW_BYTES_MAX && short.ends_with("é…"), "{short}");
        assert_eq!(shortened("hi"), "hi");
    }
}
