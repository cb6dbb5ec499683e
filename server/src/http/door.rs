//! The door of administrators: `/admin` says what to do, `/admin/claim` takes a one-time link. Whole pages without
//! anything from elsewhere, and with a policy that lets run what they were made with and nothing else.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::Html,
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::problem::Problem;
use crate::node::NodeState;

const SCRIPT: &str = include_str!("door/claim.js");
const STYLE: &str = include_str!("door/style.css");
const CLAIM: &str = include_str!("door/claim.html");

static CLAIM_PAGE: LazyLock<String> =
    LazyLock::new(|| CLAIM.replace("STYLE", STYLE).replace("SCRIPT", SCRIPT));

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(digest(&SHA256, text.as_bytes()).as_ref());
    let (script, style) = (hash(SCRIPT), hash(STYLE));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; \
         form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("letters, digits and signs of a header")
});

type Page = ([(HeaderName, HeaderValue); 2], Html<String>);

/// Its routes.
pub fn routes() -> Router<Arc<NodeState>> {
    Router::new()
        .route("/admin", get(front))
        .route("/admin/claim", get(|| async { page(CLAIM_PAGE.clone()) }))
}

fn page(html: String) -> Page {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, Html(html))
}

async fn front(State(node): State<Arc<NodeState>>) -> Result<Page, Problem> {
    let said = if node.accounts.administrators().await?.is_empty() {
        "<p>This server has no administrator yet. Run this on the server; it prints a link that is good once, for 15 \
         minutes:</p><pre>fanfare admin link</pre><p>There is no default password.</p>"
    } else {
        "<p>This server has an administrator. What may be asked of it stands behind <code>/admin/v1</code>, with an \
         administrator's token, and in the commands:</p><pre>fanfare status\nfanfare user ls\nfanfare admin ls</pre>\
         <p>Another administrator: <code>fanfare admin link</code> on the server.</p>"
    };
    Ok(page(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Fanfare: administration</title><style>{STYLE}</style><main><h1>Administration</h1>{said}</main></html>\n"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_nobody_else() {
        assert!(CLAIM_PAGE.contains(SCRIPT) && CLAIM_PAGE.contains(STYLE));
        assert!(
            !CLAIM_PAGE.contains("http:") && !CLAIM_PAGE.contains("https:") && !CLAIM_PAGE.contains("src=")
        );
        // What the policy lets run is found by its hash: an attribute that runs would not.
        assert_eq!(CLAIM_PAGE.matches("<script").count(), 1);
        assert!(!CLAIM_PAGE.contains(" on") || !CLAIM_PAGE.contains("onclick"));
    }
}
