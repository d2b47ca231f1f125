//! What is answered where there is nothing: it names what was asked for and what there is. Whoever
//! mistyped an address with curl sees no more than the body.

use super::control::refusal;
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Response;

/// The paths of both listeners, each for GET.
const READ_PATHS: [&str; 5] = ["/health", "/livez", "/readyz", "/metrics", "/api/events/stream"];
/// So much of an unknown path is repeated in the answer.
const PATH_CHARS_MAX: usize = 200;

/// Gives a finished router its answers for unknown paths and methods.
pub(super) fn answered(router: Router) -> Router {
    router.fallback(no_path).method_not_allowed_fallback(no_method)
}

async fn no_path(uri: Uri) -> Response {
    let path = shown(uri.path());
    let what = if uri.path().starts_with("/control/") {
        format!("`{path}` is not served here; commands go over the control socket only, to a daemon of the same version")
    } else {
        format!("there is no `{path}`; there is {}", READ_PATHS.join(", "))
    };
    refusal(StatusCode::NOT_FOUND, &what)
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let path = shown(uri.path());
    let instead = if READ_PATHS.contains(&uri.path()) { "it can only be read, with GET" } else { "the Allow header says what is" };
    refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("{} is not possible for `{path}`; {instead}", shown(method.as_str())))
}

fn shown(text: &str) -> String {
    text.chars().take(PATH_CHARS_MAX).collect()
}
