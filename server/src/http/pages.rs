//! What needs no token: health, version, discovery, a page that says what this is; and, from this machine, metrics and what the
//! checks found.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use super::{admin::authority, api::Peer, problem::Problem};
use crate::node::NodeState;

type Node = State<Arc<NodeState>>;

/// Its routes.
pub fn routes() -> Router<Arc<NodeState>> {
    Router::new()
        .route("/", get(front))
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route("/.well-known/fanfare.json", get(discovery))
}

/// What says how the server is doing is for this machine, and for who administers it.
async fn may_look(node: &NodeState, Peer(address): Peer, headers: &HeaderMap) -> Result<(), Problem> {
    if address.is_loopback() { Ok(()) } else { authority(node, headers).await.map(drop) }
}

/// 200 `ready`, or 503 with the names of the checks that fail; `?verbose` prints every check with what it found.
async fn readyz(
    State(node): Node,
    peer: Peer,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let checks = node.checks().await;
    let ready = checks.iter().all(|check| check.ok);
    let verbose = query
        .is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")));
    let allowed = may_look(&node, peer, &headers).await;
    let found = allowed.is_ok();
    if verbose {
        allowed?;
    }
    let shown = checks.iter().filter(|check| verbose || !check.ok);
    let mut text: String = shown
        .map(|check| {
            let detail = if found { format!(": {}", check.detail) } else { String::new() };
            format!("[{}] {}{detail}\n", if check.ok { "+" } else { "-" }, check.name)
        })
        .collect();
    text += if ready { "ready\n" } else { "not ready\n" };
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, text).into_response())
}

async fn metrics(State(node): Node, peer: Peer, headers: HeaderMap) -> Result<Response, Problem> {
    may_look(&node, peer, &headers).await?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], node.render_metrics().await).into_response())
}

/// What `fanfare version --json` prints, too.
pub fn version_json() -> Value {
    json!({
        "schema": "fanfare.version/v1",
        "version": env!("CARGO_PKG_VERSION"),
        "protocol": fanfare_proto::VERSION,
        "data_format": fanfare_storage::embedded::FORMAT,
        "assertions": cfg!(debug_assertions),
    })
}

async fn version() -> Json<Value> {
    Json(version_json())
}

/// What a client needs to begin.
async fn discovery(State(node): Node) -> Response {
    let body = json!({
        "version": fanfare_proto::VERSION,
        "gateways": [{ "host": node.public_host(), "port": node.gateway.port() }],
        "transports": ["quic", "ws", "wss"],
        "certificate_sha256": node.certificate_sha256,
    });
    // Nothing here is secret, and a page of a developer's own server has to read the hash.
    ([(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"))], Json(body)).into_response()
}

async fn front(State(node): Node) -> Html<String> {
    let (host, port) = (node.public_host(), node.gateway.port());
    let mode = if node.dev { "dev mode: loopback only" } else { "running" };
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Fanfare</title><style>body{{font:16px/1.5 system-ui;max-width:42rem;margin:3rem auto;padding:0 1rem;\
         color-scheme:light dark}}pre{{padding:1rem;border:1px solid;overflow:auto}}</style>\
         <h1>Fanfare {version}</h1><p>A messaging backend: {mode}. Clients connect to <code>{host}:{port}</code> over QUIC \
         (UDP) and WebSocket (TCP, <code>{path}</code>).</p><p>In a terminal on this machine:</p>\
         <pre>fanfare listen general --as alice\nfanfare send general \"hi\" --as bob\nfanfare user token alice\nfanfare \
         status</pre><p>For programs: <a href=/livez>/livez</a> · <a href='/readyz?verbose'>/readyz</a> · \
         <a href=/metrics>/metrics</a> · <a href=/version>/version</a> · \
         <a href=/.well-known/fanfare.json>/.well-known/fanfare.json</a> · \
         <a href=/openapi.json>/openapi.json</a></p><p><a href=/admin>Administration</a></p></html>\n",
        version = env!("CARGO_PKG_VERSION"),
        path = fanfare_proto::WS_PATH,
    ))
}
