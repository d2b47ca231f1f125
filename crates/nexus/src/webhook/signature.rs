//! Decides whether a request comes from someone who holds the account's secret.
//! Owns the GitHub, Stripe and token schemes; it never reads a body from a socket, never logs, and
//! never puts a secret into a message.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, ORIGIN};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const GITHUB_HEADER: &str = "x-hub-signature-256";
const STRIPE_HEADER: &str = "stripe-signature";
/// Stripe sends one `v1` per active secret; more than a few is somebody guessing.
const MAX_STRIPE_SIGNATURES: usize = 8;

/// A shared secret whose `Debug` form hides its bytes.
#[derive(Clone)]
pub(super) struct Secret(Vec<u8>);

impl Secret {
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Where the `token` scheme looks for its token.
#[derive(Debug, Clone)]
pub(super) enum TokenHeader {
    /// `Authorization: Bearer <token>` (RFC 6750, section 2.1).
    Bearer,
    /// The whole value of this header.
    Named(HeaderName),
}

/// How an account's requests are verified.
#[derive(Debug, Clone)]
pub(super) enum Verifier {
    Github { secret: Secret },
    Stripe { secret: Secret, tolerance_s: u64 },
    Token { secret: Secret, header: TokenHeader },
    Unverified,
}

/// Why a request is not believed. Nothing here repeats a header's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("the `{header}` header is missing")]
    Missing { header: String },
    #[error("the `{header}` header is repeated or malformed")]
    Malformed { header: String },
    #[error("the signature is {skew_s} s away from this machine's clock, more than {tolerance_s} s")]
    Stale { skew_s: u64, tolerance_s: u64 },
    #[error("the signature or token does not match the configured secret")]
    Mismatch,
    #[error("a request from a web page is refused while `verify` is `none`")]
    FromBrowser,
}

/// What the headers claim; [`Claim::prove`] checks it against the body.
#[derive(Debug)]
pub(super) enum Claim<'a> {
    /// The headers alone were proof enough.
    Settled,
    Github {
        secret: &'a Secret,
        signature: [u8; 32],
    },
    Stripe {
        secret: &'a Secret,
        signed_at: String,
        signatures: Vec<[u8; 32]>,
    },
}

impl Verifier {
    /// The value of `verify` in the account's config.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Github { .. } => "github",
            Self::Stripe { .. } => "stripe",
            Self::Token { .. } => "token",
            Self::Unverified => "none",
        }
    }

    /// Reads the proof out of the headers, before any body is accepted, so that a stranger costs
    /// no memory. `now_s` is Unix time in seconds.
    pub(super) fn claim(&self, headers: &HeaderMap, now_s: u64) -> Result<Claim<'_>, Rejection> {
        match self {
            Self::Github { secret } => {
                let value = single(headers, GITHUB_HEADER)?;
                let signature = value.strip_prefix("sha256=").and_then(parse_mac).ok_or_else(|| malformed(GITHUB_HEADER))?;
                Ok(Claim::Github { secret, signature })
            }
            Self::Stripe { secret, tolerance_s } => stripe_claim(secret, single(headers, STRIPE_HEADER)?, *tolerance_s, now_s),
            Self::Token { secret, header } => {
                check_token(secret, header, headers)?;
                Ok(Claim::Settled)
            }
            Self::Unverified => {
                // Any web page may post to a loopback port; browsers then always send Origin.
                if headers.contains_key(ORIGIN) {
                    return Err(Rejection::FromBrowser);
                }
                Ok(Claim::Settled)
            }
        }
    }
}

impl Claim<'_> {
    /// Checks the claim against the raw body, in constant time.
    pub(super) fn prove(&self, body: &[u8]) -> Result<(), Rejection> {
        match self {
            Self::Settled => Ok(()),
            Self::Github { secret, signature } => verify_mac(secret, &[body], signature),
            Self::Stripe { secret, signed_at, signatures } => {
                let parts: [&[u8]; 3] = [signed_at.as_bytes(), b".", body];
                let proven = signatures.iter().any(|signature| verify_mac(secret, &parts, signature).is_ok());
                if proven { Ok(()) } else { Err(Rejection::Mismatch) }
            }
        }
    }
}

/// The one value of `name`: a repeated header means two parties disagree about what was signed.
fn single<'h>(headers: &'h HeaderMap, name: &str) -> Result<&'h str, Rejection> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().ok_or_else(|| Rejection::Missing { header: name.to_owned() })?;
    if values.next().is_some() {
        return Err(malformed(name));
    }
    first.to_str().map_err(|_| malformed(name))
}

fn malformed(name: &str) -> Rejection {
    Rejection::Malformed { header: name.to_owned() }
}

fn parse_mac(text: &str) -> Option<[u8; 32]> {
    let mut mac = [0_u8; 32];
    hex::decode_to_slice(text, &mut mac).ok()?;
    Some(mac)
}

fn verify_mac(secret: &Secret, parts: &[&[u8]], signature: &[u8; 32]) -> Result<(), Rejection> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).map_err(|_| Rejection::Mismatch)?;
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(signature).map_err(|_| Rejection::Mismatch)
}

/// Parses `t=<seconds>,v1=<hex>[,v1=<hex>]`; other schemes (`v0`) are ignored, as Stripe asks.
fn stripe_claim<'a>(secret: &'a Secret, value: &str, tolerance_s: u64, now_s: u64) -> Result<Claim<'a>, Rejection> {
    let mut signed_at = None;
    let mut signatures = Vec::new();
    for item in value.split(',') {
        let (key, text) = item.trim().split_once('=').ok_or_else(|| malformed(STRIPE_HEADER))?;
        match key {
            "t" if signed_at.is_none() => signed_at = Some(text),
            "t" => return Err(malformed(STRIPE_HEADER)),
            "v1" if signatures.len() < MAX_STRIPE_SIGNATURES => {
                signatures.push(parse_mac(text).ok_or_else(|| malformed(STRIPE_HEADER))?);
            }
            "v1" => return Err(malformed(STRIPE_HEADER)),
            _ => {}
        }
    }
    let signed_at = signed_at.ok_or_else(|| malformed(STRIPE_HEADER))?;
    let seconds: u64 = signed_at.parse().map_err(|_| malformed(STRIPE_HEADER))?;
    if signatures.is_empty() {
        return Err(malformed(STRIPE_HEADER));
    }
    let skew_s = now_s.abs_diff(seconds);
    if skew_s > tolerance_s {
        return Err(Rejection::Stale { skew_s, tolerance_s });
    }
    Ok(Claim::Stripe { secret, signed_at: signed_at.to_owned(), signatures })
}

fn check_token(secret: &Secret, header: &TokenHeader, headers: &HeaderMap) -> Result<(), Rejection> {
    let token = match header {
        TokenHeader::Bearer => {
            let value = single(headers, AUTHORIZATION.as_str())?;
            value
                .split_once(' ')
                .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
                .map(|(_, token)| token.trim())
                .ok_or_else(|| malformed(AUTHORIZATION.as_str()))?
        }
        TokenHeader::Named(name) => single(headers, name.as_str())?,
    };
    // Digests are compared, so that not even the token's length shows in the timing.
    let given: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    let wanted: [u8; 32] = Sha256::digest(&secret.0).into();
    if bool::from(given[..].ct_eq(&wanted[..])) { Ok(()) } else { Err(Rejection::Mismatch) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hyper::header::HeaderValue;

    const NOW_S: u64 = 1_760_000_000;
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn check(verifier: &Verifier, headers: &HeaderMap, body: &[u8]) -> Result<(), Rejection> {
        verifier.claim(headers, NOW_S)?.prove(body)
    }

    /// HMAC from its definition (RFC 2104) for keys up to one block, without the `hmac` crate.
    fn hmac_by_definition(key: &[u8], message: &[u8]) -> String {
        let mut block = [0_u8; 64];
        block[..key.len()].copy_from_slice(key);
        let mut inner: Vec<u8> = block.iter().map(|byte| byte ^ 0x36).collect();
        inner.extend_from_slice(message);
        let inner: [u8; 32] = Sha256::digest(&inner).into();
        let mut outer: Vec<u8> = block.iter().map(|byte| byte ^ 0x5c).collect();
        outer.extend_from_slice(&inner);
        let outer: [u8; 32] = Sha256::digest(&outer).into();
        hex::encode(outer)
    }

    fn github() -> Verifier {
        Verifier::Github { secret: Secret::new("It's a Secret to Everybody") }
    }

    #[test]
    fn github_documented_example_is_accepted() {
        let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let headers = headers(&[(GITHUB_HEADER, signature)]);
        assert_eq!(check(&github(), &headers, b"Hello, World!"), Ok(()));
        let changed = check(&github(), &headers, b"Hello, World?");
        assert_eq!(changed, Err(Rejection::Mismatch));
    }

    #[test]
    fn github_headers_that_prove_nothing_are_refused() {
        let good = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let missing = check(&github(), &HeaderMap::new(), BODY);
        assert!(matches!(missing, Err(Rejection::Missing { .. })));
        for value in ["", "sha256=", "sha1=00", &good[7..], &good[..70], "sha256=zz"] {
            let refused = check(&github(), &headers(&[(GITHUB_HEADER, value)]), BODY);
            assert!(matches!(refused, Err(Rejection::Malformed { .. })), "{value}");
        }
        let twice = headers(&[(GITHUB_HEADER, good), (GITHUB_HEADER, good)]);
        let refused = check(&github(), &twice, b"Hello, World!");
        assert!(matches!(refused, Err(Rejection::Malformed { .. })));
    }

    fn stripe(value: &str, body: &[u8]) -> Result<(), Rejection> {
        let verifier = Verifier::Stripe { secret: Secret::new("whsec_test"), tolerance_s: 300 };
        check(&verifier, &headers(&[(STRIPE_HEADER, value)]), body)
    }

    fn stripe_mac(signed_at: u64) -> String {
        let mut message = format!("{signed_at}.").into_bytes();
        message.extend_from_slice(BODY);
        hmac_by_definition(b"whsec_test", &message)
    }

    #[test]
    fn stripe_accepts_any_matching_v1() {
        let mac = stripe_mac(NOW_S);
        let other = "0".repeat(64);
        assert_eq!(stripe(&format!("t={NOW_S},v1={mac}"), BODY), Ok(()));
        let rolled = format!("t={NOW_S},v0=ff,v1={other},v1={mac}");
        assert_eq!(stripe(&rolled, BODY), Ok(()));
        let wrong = format!("t={NOW_S},v1={other}");
        assert_eq!(stripe(&wrong, BODY), Err(Rejection::Mismatch));
        let changed = stripe(&format!("t={NOW_S},v1={mac}"), b"{}");
        assert_eq!(changed, Err(Rejection::Mismatch));
    }

    #[test]
    fn stripe_tolerance_holds_in_both_directions() {
        for signed_at in [NOW_S - 300, NOW_S + 300] {
            let mac = stripe_mac(signed_at);
            assert_eq!(stripe(&format!("t={signed_at},v1={mac}"), BODY), Ok(()));
        }
        for signed_at in [NOW_S - 301, NOW_S + 301, 0, u64::MAX] {
            let mac = stripe_mac(signed_at);
            let refused = stripe(&format!("t={signed_at},v1={mac}"), BODY);
            assert!(matches!(refused, Err(Rejection::Stale { .. })), "{signed_at}");
        }
    }

    #[test]
    fn stripe_hostile_headers_are_refused() {
        let mac = stripe_mac(NOW_S);
        let flood = format!("t={NOW_S}{}", format!(",v1={mac}").repeat(9));
        let twice = format!("t={NOW_S},t={NOW_S},v1={mac}");
        let stampless = format!("v1={mac}");
        let shaped = ["", ",", "t=1", "t=-1,v1=00"];
        let crafted = [flood.as_str(), twice.as_str(), stampless.as_str()];
        for value in shaped.into_iter().chain(crafted) {
            let refused = stripe(value, BODY);
            assert!(matches!(refused, Err(Rejection::Malformed { .. })), "{value}");
        }
    }

    #[test]
    fn token_is_read_from_bearer_or_a_named_header() {
        let bearer = Verifier::Token { secret: Secret::new("s3cret"), header: TokenHeader::Bearer };
        let good = headers(&[("authorization", "bearer s3cret")]);
        assert_eq!(check(&bearer, &good, BODY), Ok(()));
        let wrong = headers(&[("authorization", "Bearer s3cre")]);
        assert_eq!(check(&bearer, &wrong, BODY), Err(Rejection::Mismatch));
        let basic = headers(&[("authorization", "Basic s3cret")]);
        assert!(matches!(check(&bearer, &basic, BODY), Err(Rejection::Malformed { .. })));

        let named =
            Verifier::Token { secret: Secret::new("s3cret"), header: TokenHeader::Named(HeaderName::from_static("x-gitlab-token")) };
        let good = headers(&[("x-gitlab-token", "s3cret")]);
        assert_eq!(check(&named, &good, BODY), Ok(()));
        assert!(matches!(check(&named, &HeaderMap::new(), BODY), Err(Rejection::Missing { .. })));
    }

    #[test]
    fn unverified_refuses_web_pages_only() {
        let none = Verifier::Unverified;
        assert_eq!(check(&none, &HeaderMap::new(), BODY), Ok(()));
        let page = headers(&[("origin", "https://evil.example")]);
        assert_eq!(check(&none, &page, BODY), Err(Rejection::FromBrowser));
    }

    #[test]
    fn a_secret_never_shows_in_debug_output() {
        assert!(!format!("{:?}", github()).contains("Everybody"));
    }
}
