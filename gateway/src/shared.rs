//! What all lanes of a gateway share: read-mostly, or counted with atomics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use fanfare_proto::{
    error::Code,
    ids::{IdSource, SHARDS_MAX, SessionId, ShardId},
    link::{Activities, Activity, GatewayId, PRESENCE_OWNER, Up, Uplink},
    session::server::Policy,
};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use crate::{
    admission::Admission,
    clock::Clock,
    config::{Limits, Origins},
    credit::Credits,
    resume::ResumeKeys,
    tls::Tls,
    token::Verifier,
};

/// See the module's page.
pub(crate) struct Shared {
    pub id: GatewayId,
    pub uplink: Arc<dyn Uplink>,
    pub activities: Option<Arc<dyn Activities>>,
    pub verifier: Verifier,
    pub resume: ResumeKeys,
    pub resume_life_ms: u64,
    pub reset_key: Option<[u8; 32]>,
    pub limits: Limits,
    pub origins: Origins,
    pub plain: bool,
    pub sweep: std::time::Duration,
    pub clock: Clock,
    pub admission: Arc<Admission>,
    pub credits: Credits,
    pub tls: Option<Tls>,
    pub ids: Mutex<IdSource>,
    pub counts: Counts,
}

impl Shared {
    pub fn policy(&self) -> &Policy {
        &self.limits.policy
    }

    /// A new session's id.
    pub fn session_id(&self) -> SessionId {
        SessionId(self.ids.lock().next(self.clock.unix_ms()))
    }

    /// Ids of this gateway's sessions.
    pub fn id_source(gateway: GatewayId) -> Mutex<IdSource> {
        Mutex::new(IdSource::new(ShardId(gateway.0 % SHARDS_MAX), 0))
    }

    /// Close and Credit always find room.
    pub fn send_up(&self, up: Up) {
        if self.uplink.try_send(up).is_err() {
            tracing::error!("the link took no word of a session's end");
        }
    }

    /// Tells what a session did, where somebody wants to know.
    ///
    /// # Errors
    /// `NOT_SERVED`, `RETRY_LATER`: only a client's PRESENCE is answered by it.
    pub fn tell(&self, activity: Activity) -> Result<(), Code> {
        self.activities.as_ref().map_or(Err(Code::NOT_SERVED), |activities| activities.publish(activity))
    }

    /// So many bytes of that owner were handed on.
    pub fn handed_on(&self, owner: u16, bytes: u32) {
        match &self.activities {
            Some(activities) if owner == PRESENCE_OWNER => activities.credit(self.id, bytes),
            _ => self.credits.handed_on(self.id, owner, bytes, &*self.uplink),
        }
    }

    /// A connection ends, or is refused, for that reason.
    pub fn count_close(&self, code: Code) {
        metrics::counter!("fanfare_gateway_closes_total", "code" => code.to_string()).increment(1);
    }
}

/// Counted by lanes as they sweep, read by [`crate::Gateway::stats`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub sessions: AtomicUsize,
    pub frames_in: AtomicU64,
    pub buffers_out: AtomicU64,
    pub bytes_out: AtomicU64,
    pub waiting_bytes: AtomicU64,
    pub hints_dropped: AtomicU64,
    pub collapsed: AtomicU64,
}

/// A gateway's figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Sockets and QUIC connections, handshakes included.
    pub connections: usize,
    /// Sessions with a WELCOME.
    pub sessions: usize,
    /// Frames handed to routers, so far.
    pub frames_in: u64,
    /// Buffers handed to connections, so far; a buffer holds the frames of a channel and pass.
    pub buffers_out: u64,
    /// Their bytes, so far.
    pub bytes_out: u64,
    /// Bytes that waited for slow readers at the last sweep.
    pub waiting_bytes: u64,
    /// Times that hints were dropped for a slow reader.
    pub hints_dropped: u64,
    /// Times that entries were collapsed for a slow reader.
    pub collapsed: u64,
}

impl Shared {
    pub fn stats(&self) -> Stats {
        let counts = &self.counts;
        Stats {
            connections: self.admission.connections() as usize,
            sessions: counts.sessions.load(Ordering::Relaxed),
            frames_in: counts.frames_in.load(Ordering::Relaxed),
            buffers_out: counts.buffers_out.load(Ordering::Relaxed),
            bytes_out: counts.bytes_out.load(Ordering::Relaxed),
            waiting_bytes: counts.waiting_bytes.load(Ordering::Relaxed),
            hints_dropped: counts.hints_dropped.load(Ordering::Relaxed),
            collapsed: counts.collapsed.load(Ordering::Relaxed),
        }
    }

    /// The certificate's SHA-256, where there is one.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        self.tls.as_ref()?.fingerprint()
    }
}

/// SHA-256 of a certificate's DER, as clients of a dev server compare it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
