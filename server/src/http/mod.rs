//! HTTP: health, metrics, discovery, one page for people, and `/admin/v1` for commands. Loopback unless configured.

mod admin;
mod api;
mod client_address;
mod door;
mod pages;
mod places;
mod problem;
mod serve;

use std::{error::Error as _, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderName, HeaderValue, Method, Version, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use fanfare_gateway::Origins;
use fanfare_proto::Code;
use http_body_util::LengthLimitError;
use tower_http::cors::{AllowOrigin, CorsLayer};

pub use api::document;

/// The bounds of HTTP.
pub mod bounds {
    pub use super::{
        BODY_BYTES_MAX, BODY_WAIT_MAX,
        api::{MEMBERS_PAGE, MESSAGES_MAX, RATE_BURST, RATE_WITHIN},
        places::{CONNECTIONS_KEPT_FREE, CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS},
        serve::{CONNECTION_AGE_MAX, HEAD_BYTES_MAX, HEAD_WAIT_MAX, READ_WAIT_MAX},
    };
}

pub use pages::version_json;
pub use problem::Problem;
pub use serve::{HttpServer, describe_metrics, listen};

use crate::node::NodeState;

/// The longest request body.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// How long a request body may take to arrive.
pub const BODY_WAIT_MAX: Duration = Duration::from_secs(10);

/// All routes.
pub fn routes(state: Arc<NodeState>) -> Router {
    let api = api::routes(&state).layer(cors(&state));
    Router::new()
        .merge(pages::routes())
        .merge(door::routes())
        .merge(api)
        .nest("/admin/v1", admin::routes(Arc::clone(&state)))
        .fallback(|| async { Problem::not_found("no such path; / says what is here") })
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(bounded))
        .with_state(state)
}

async fn no_such_method() -> Problem {
    Problem::new(Code::BAD_FIELD, "the path has no such method").status(405)
}

/// Pages of the allow-list, and of loopback in dev mode, may ask; no cookies.
fn cors(state: &NodeState) -> CorsLayer {
    let origins = Origins { loopback: state.dev, allowed: state.origins.clone() };
    let allowed =
        AllowOrigin::predicate(move |origin, _| origin.to_str().is_ok_and(|origin| origins.allows(origin)));
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers([
            header::RETRY_AFTER,
            HeaderName::from_static("ratelimit-limit"),
            HeaderName::from_static("ratelimit-remaining"),
            HeaderName::from_static("ratelimit-reset"),
        ])
        .max_age(Duration::from_secs(600))
}

/// Refuses what names no host or two (RFC 9112, 3.2), and reads the body whole, within bounds of bytes and time, before a
/// handler sees the request.
async fn bounded(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let mut response = if names_its_host(&head) {
        match tokio::time::timeout(BODY_WAIT_MAX, to_bytes(body, BODY_BYTES_MAX)).await {
            Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
            Ok(Err(error)) if error.source().is_some_and(|source| source.is::<LengthLimitError>()) => {
                Problem::new(Code::BODY_TOO_LARGE, "the request's body is over 1 MiB").into_response()
            }
            Ok(Err(_)) => {
                Problem::new(Code::BAD_BODY, "the request's body broke off, or its chunks are broken")
                    .into_response()
            }
            Err(_) => Problem::new(Code::HANDSHAKE_TIMEOUT, "the request's body did not come in time")
                .status(408)
                .into_response(),
        }
    } else {
        let mut response = Problem::new(Code::BAD_FIELD, "a request has one Host header").into_response();
        // Whoever sent it, perhaps through a proxy that understood it otherwise, begins anew.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn names_its_host(head: &Parts) -> bool {
    match head.headers.get_all(header::HOST).iter().count() {
        0 => head.version < Version::HTTP_11,
        count => count == 1,
    }
}
