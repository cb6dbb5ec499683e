//! What the server holds about the caller, as a stream of lines.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::time::{Sleep, sleep};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{Node, NodeRouter, ProblemBody};
use crate::{accounts::Caller, export::Export, http::problem::Problem};

/// How long the line that says why an export broke off has to reach the reader: what breaks a connection throws away what
/// is not written yet.
const LAST_LINE_WITHIN: Duration = Duration::from_secs(1);

pub fn routes() -> NodeRouter {
    OpenApiRouter::new().routes(routes!(export))
}

/// Everything the server holds about the caller
///
/// Lines of JSON, each with its `type`: `export`, `account`, `device`, `login`, `session`, `block`, `mark`, `channel`, `message`, `reaction`, and at
/// last `end`. A stream that ends without `end` broke off. Of channels that the caller left it has the memberships alone.
#[utoipa::path(get, path = "/v1/export", tag = "accounts", security(("token" = [])), responses(
    (status = 200, body = String, content_type = "application/x-ndjson"),
    (status = 401, body = ProblemBody, content_type = "application/problem+json"),
    (status = 429, description = "one runs already, or there were many", body = ProblemBody, content_type = "application/problem+json"),
    (status = 503, body = ProblemBody, content_type = "application/problem+json"),
))]
async fn export(State(node): Node, caller: Caller) -> Result<Response, Problem> {
    Ok(answer(node.exports.begin_own(caller)?))
}

/// An export as an answer.
pub fn answer(export: Export) -> Response {
    let kind = HeaderValue::from_static("application/x-ndjson");
    let name = HeaderValue::from_static("attachment; filename=\"export.ndjson\"");
    let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)];
    (headers, Body::new(Stream { export, whole: false, breaks: None })).into_response()
}

struct Stream {
    export: Export,
    whole: bool,
    breaks: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.whole {
            return Poll::Ready(None);
        }
        match ready!(self.export.chunks.poll_recv(context)) {
            Some(Some(chunk)) => Poll::Ready(Some(Ok(Frame::data(chunk)))),
            Some(None) => {
                self.whole = true;
                Poll::Ready(None)
            }
            // The connection breaks off, so that nobody takes a part for the whole.
            None => {
                let breaks = self.breaks.get_or_insert_with(|| Box::pin(sleep(LAST_LINE_WITHIN)));
                ready!(breaks.as_mut().poll(context));
                Poll::Ready(Some(Err(io::Error::other("the export broke off"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole
    }
}
