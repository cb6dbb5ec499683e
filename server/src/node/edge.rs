//! HTTP as an edge of its own: what people send without a connection goes over `proto::link` like everybody's frames, so
//! that the owner of the channel checks it by the same rules, in the same transaction as the write.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use fanfare_proto::{
    ChannelId, Code, DeviceId, Frame, FrameType, SessionId, UserId, check, frame,
    header::{class, flags},
    link::{Down, Downlink, GatewayId, Handle, Origin, Up, Uplink},
    wire,
};
use fanfare_router::Router;
use fanfare_storage::mutant;
use parking_lot::Mutex;

/// This edge, as routers know it.
const GATEWAY: GatewayId = GatewayId(u16::MAX);
/// Longest wait for an answer; what was asked may happen all the same.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Edge {
    shared: Arc<Shared>,
}

struct Shared {
    uplink: Arc<dyn Uplink>,
    /// Requests by the generation of their handle; bounded by the HTTP side's connections.
    waiting: Mutex<HashMap<u32, tokio::sync::oneshot::Sender<Bytes>>>,
    next: AtomicU32,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("waiting", &self.shared.waiting.lock().len()).finish_non_exhaustive()
    }
}

/// Takes its place away when the request is over, answered or not.
struct Place<'a>(&'a Shared, u32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().remove(&self.1);
    }
}

impl Edge {
    /// Joined to that router.
    pub fn attach(router: &Router) -> Self {
        let shared = Arc::new(Shared {
            uplink: router.uplink(),
            waiting: Mutex::new(HashMap::new()),
            next: AtomicU32::new(1),
        });
        router.attach_gateway(GATEWAY, Arc::new(Answers(Arc::clone(&shared))));
        Self { shared }
    }

    /// A SEND of that user, and what became of it. Repeating it with the same client message id is safe.
    ///
    /// # Errors
    /// `RETRY_LATER`: nothing was changed. `OUTCOME_UNKNOWN`: no answer came in time.
    pub async fn send(
        &self,
        user: UserId,
        device: DeviceId,
        channel: ChannelId,
        send: &wire::Send,
    ) -> Result<wire::SendAck, Code> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed).max(1);
        // As from a pool of connections that takes one back although an answer is still to come over it.
        let number = if mutant::is("pooled-connection-reused-after-cancel") { 1 } else { number };
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.shared.waiting.lock().insert(number, answer);
        let _place = Place(&self.shared, number);
        let mark = if send.first_attempt_ms > 0 { flags::RETRY } else { 0 };
        let mut bytes = frame::routed(FrameType::Send, class::MESSAGE, mark, 0, channel, 1, send);
        let frame = Frame::split_from(&mut bytes)?.ok_or(Code::INTERNAL)?;
        // What a connection's session checks before anything goes on.
        check::check(&frame, true)?;
        let origin = Origin {
            gateway: GATEWAY,
            handle: Handle::new(0, 0, number),
            session: SessionId(u64::from(number)),
            user,
            device,
        };
        self.shared.uplink.send(Up::Frame { origin, frame }).await?;
        let answer = tokio::time::timeout(ANSWER_TIME, answered).await;
        let mut frames = answer.map_err(|_| Code::OUTCOME_UNKNOWN)?.map_err(|_| Code::OUTCOME_UNKNOWN)?;
        let frame = Frame::split_from(&mut frames)?.ok_or(Code::INTERNAL)?;
        match frame.frame_type() {
            FrameType::SendAck => frame.decode(),
            FrameType::Refused | FrameType::Error => {
                let error: wire::Error = frame.decode()?;
                Err(u16::try_from(error.code).map_or(Code::INTERNAL, Code))
            }
            _ => Err(Code::INTERNAL),
        }
    }
}

struct Answers(Arc<Shared>);

impl Downlink for Answers {
    fn send(&self, owner: u16, down: Down) {
        let bytes = down.charge_bytes();
        if let Down::Reply { handle, frames } = down {
            let waiting = self.0.waiting.lock().remove(&handle.generation());
            if let Some(waiting) = waiting {
                let _ = waiting.send(frames);
            }
        }
        // Handed on at once: what owners may have under way is given back. Credit always finds room.
        let _ = self.0.uplink.try_send(Up::Credit { gateway: GATEWAY, owner, bytes });
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use fanfare_proto::ClientMessageId;

    use super::*;

    /// Takes what comes, and forgets who asked: no answer will come.
    struct Silence(std::sync::OnceLock<std::sync::Weak<Shared>>);

    impl Uplink for Silence {
        fn try_send(&self, _: Up) -> Result<(), Box<Up>> {
            Ok(())
        }

        fn reserve(&self, _: &Up) -> bool {
            true
        }

        fn hand_over(&self, ups: &mut Vec<Up>) {
            ups.clear();
        }

        fn send(&self, _: Up) -> Pin<Box<dyn Future<Output = Result<(), Code>> + Send + '_>> {
            if let Some(shared) = self.0.get().and_then(std::sync::Weak::upgrade) {
                shared.waiting.lock().clear();
            }
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_leaves_the_outcome_unknown() {
        let silence = Arc::new(Silence(std::sync::OnceLock::new()));
        let shared = Arc::new(Shared {
            uplink: silence.clone(),
            waiting: Mutex::new(HashMap::new()),
            next: AtomicU32::new(1),
        });
        let _ = silence.0.set(Arc::downgrade(&shared));
        let edge = Edge { shared };
        let send = wire::Send {
            client_message_id: ClientMessageId::new(crate::clock::now_ms(), [7; 10]).0.to_vec().into(),
            content: Some(wire::send::Content::Message(wire::Message {
                text: "hi".to_owned(),
                ..wire::Message::default()
            })),
            ..wire::Send::default()
        };
        let sent = edge.send(UserId(1), DeviceId(2), ChannelId(3), &send).await;
        assert_eq!(sent, Err(Code::OUTCOME_UNKNOWN));
    }
}
