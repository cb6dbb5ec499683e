//! `/v1`: what apps and their backends ask for. Stateless: any number of processes may serve it. Every route stands
//! in `/openapi.json`, which is made from the handlers themselves.

mod accounts;
mod administrators;
mod amendments;
mod channels;
pub mod export;
pub mod presence;
mod rights;
mod webhooks;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::BytesRejection},
    http::{HeaderValue, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use fanfare_proto::Code;
use serde::{Serialize, de::DeserializeOwned};
use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

pub use channels::{MEMBERS_PAGE, MESSAGES_MAX};

use super::problem::{Problem, parse};
use crate::{
    accounts::{Caller, throttle::Throttle},
    node::NodeState,
};

/// Requests that one address may make at once, and so many again within [`RATE_WITHIN`].
pub const RATE_BURST: u32 = 120;
/// See [`RATE_BURST`].
pub const RATE_WITHIN: Duration = Duration::from_secs(60);

/// The address of a connection's peer, as limits take it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Fanfare",
        description = "Accounts, devices, channels, members and history for apps and their backends. Messages as they come travel over \
                       QUIC and WebSocket: see docs/protocol.md. Ids are decimal strings. Errors are problem+json (RFC 9457) with a \
                       number of the one table (`fanfare explain`).",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Bearer)
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        openapi
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// What every error looks like.
#[derive(ToSchema)]
#[allow(dead_code, reason = "only its schema is used: the answer is made by `Problem`")]
struct ProblemBody {
    /// Always `about:blank`: the number says more.
    r#type: String,
    /// What the number means.
    title: Option<String>,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time.
    detail: String,
    /// The number as people see it.
    #[schema(example = "FAN-R001")]
    code: String,
    /// The number.
    number: u16,
    /// What to do about it.
    fix: Option<String>,
}

type Node = axum::extract::State<Arc<NodeState>>;
type NodeRouter = OpenApiRouter<Arc<NodeState>>;

fn described() -> NodeRouter {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(accounts::routes())
        .merge(administrators::routes())
        .merge(amendments::routes())
        .merge(channels::routes())
        .merge(export::routes())
        .merge(presence::routes())
        .merge(rights::routes())
        .merge(webhooks::routes())
}

/// The document that describes all routes.
pub fn document() -> utoipa::openapi::OpenApi {
    described().split_for_parts().1
}

/// All routes, with the document that describes them.
pub fn routes(state: &Arc<NodeState>) -> Router<Arc<NodeState>> {
    let (router, document) = described().split_for_parts();
    let document: Bytes = serde_json::to_vec(&document).unwrap_or_default().into();
    let json = HeaderValue::from_static("application/json");
    router
        .route("/openapi.json", get(move || async move { ([(header::CONTENT_TYPE, json)], document) }))
        // Before the layers: one that is set behind them takes a preflight's OPTIONS past the rules for other origins.
        .method_not_allowed_fallback(super::no_such_method)
        .layer(middleware::from_fn_with_state(Arc::new(Rate::new(state.for_load)), rated))
}

struct Rate {
    by_address: Throttle<IpAddr>,
    burst: u32,
}

impl Rate {
    fn new(for_load: bool) -> Self {
        let burst = if for_load { RATE_BURST * 10_000 } else { RATE_BURST };
        Self { by_address: Throttle::new(burst, RATE_WITHIN), burst }
    }
}

async fn rated(
    axum::extract::State(rate): axum::extract::State<Arc<Rate>>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let left = peer.map_or(Ok(0), |peer| rate.by_address.take(&peer));
    let (mut response, left) = match left {
        Ok(left) => (next.run(request).await, left),
        Err(wait) => (Problem::of(Code::RATE_LIMITED).retry_after(wait).into_response(), 0),
    };
    let headers = response.headers_mut();
    headers.insert("ratelimit-limit", HeaderValue::from(rate.burst));
    headers.insert("ratelimit-remaining", HeaderValue::from(left));
    headers.insert("ratelimit-reset", HeaderValue::from(RATE_WITHIN.as_secs() / u64::from(RATE_BURST) + 1));
    response
}

impl FromRequestParts<Arc<NodeState>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<NodeState>) -> Result<Self, Problem> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Code::TOKEN_MISSING)?;
        Ok(node.accounts.caller(token.trim()).await?)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(|| Problem::of(Code::INTERNAL))
    }
}

/// A JSON body.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|error: BytesRejection| Problem::new(Code::BAD_BODY, error.body_text()))?;
        parse(&bytes).map(Self)
    }
}

/// A query's values.
struct Asked<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(value) = Query::<T>::from_request_parts(parts, state).await?;
        Ok(Self(value))
    }
}

/// Ids in a path: decimal, below 2^63.
struct Ids<const N: usize>([u64; N]);

impl<const N: usize, S: Send + Sync> FromRequestParts<S> for Ids<N> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let odd = || Problem::new(Code::BAD_FIELD, "an id in the path is not a decimal number below 2^63");
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Path(words) = path.map_err(|_| odd())?;
        let ids: Option<Vec<u64>> = words.iter().map(|(_, word)| id(word)).collect();
        ids.and_then(|ids| ids.try_into().ok()).map(Self).ok_or_else(odd)
    }
}

/// A decimal id below 2^63, without sign or leading zeros.
fn id(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|id: &u64| digits && id >> 63 == 0)
}

type Answer<T> = Result<Json<T>, Problem>;

/// What has no more to say than that it was done.
#[derive(Serialize, ToSchema)]
struct Done {
    /// Always true.
    done: bool,
}

const DONE: Json<Done> = Json(Done { done: true });
