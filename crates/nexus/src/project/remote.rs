//! Which addresses a repository may be cloned from, and where such an address leads. It decides and resolves; it
//! connects to nothing.

use crate::plugin::calls::is_public;
use nexus_core::config::Git as Rules;
use reqwest::Url;
use std::net::IpAddr;
use std::time::Duration;

/// Longest address, in bytes.
const URL_BYTES_MAX: usize = 2048;
/// How long a name may take to be resolved.
const LOOKUP_LIMIT: Duration = Duration::from_secs(20);
/// Most addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("the repository's address {problem}")]
    Invalid { problem: &'static str },
    #[error("the repository's address has the scheme `{scheme}`, which is not in projects.git.allow_schemes")]
    Scheme { scheme: String },
    #[error("the repository's host `{host}` is not in projects.git.allow_hosts")]
    Host { host: String },
    #[error("failed to resolve the repository's host `{host}`")]
    Lookup {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the repository's host `{host}` has the address {address}, which is not a public one; projects.git.allow_private allows it")]
    Private { host: String, address: IpAddr },
}

/// An address that may be cloned from, in the form in which git gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub url: String,
    pub scheme: String,
    /// Without the brackets of an address of version 6.
    pub host: String,
    pub port: u16,
    /// The configuration names the host itself, which counts as an approval.
    pub named: bool,
}

impl Remote {
    /// Reads `scheme://host/path`, or `user@host:path` as ssh has it.
    ///
    /// # Errors
    /// [`RemoteError`] for what is no such address, or for one that `rules` don't allow.
    pub fn parse(text: &str, rules: &Rules) -> Result<Self, RemoteError> {
        let invalid = |problem| Err(RemoteError::Invalid { problem });
        if text.is_empty() || text.len() > URL_BYTES_MAX {
            return invalid("is empty or too long");
        }
        if text.starts_with('-') || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
            return invalid("begins with a dash, or has spaces or control characters");
        }
        if text.contains("::") && !text.contains("://[") {
            return invalid("names a remote helper, which is a program");
        }
        let long = if text.contains("://") { text.to_owned() } else { of_scp(text)? };
        let Ok(url) = Url::parse(&long) else { return invalid("is not scheme://host/path") };
        let scheme = url.scheme().to_owned();
        if !rules.allow_schemes.contains(&scheme) {
            return Err(RemoteError::Scheme { scheme });
        }
        if url.password().is_some() || (scheme != "ssh" && !url.username().is_empty()) {
            return invalid("has credentials in it; store them with the program that needs them");
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        if !is_host(&host) || !is_user(url.username()) {
            return invalid("has no usable host or user");
        }
        if url.path().trim_matches('/').is_empty() {
            return invalid("has no path");
        }
        let port = url.port_or_known_default().unwrap_or(22);
        let Some(named) = allowed(&host, port, &rules.allow_hosts) else { return Err(RemoteError::Host { host }) };
        Ok(Self { url: url.to_string(), scheme, host, port, named })
    }

    /// The addresses that git is to connect to: those of the name, all public. Empty where `rules` allow any, and
    /// where the host is an address itself.
    ///
    /// # Errors
    /// [`RemoteError`] when the name can't be resolved, or one of its addresses isn't public: a name is whoever's who
    /// owns its zone.
    pub async fn resolve(&self, rules: &Rules) -> Result<Vec<IpAddr>, RemoteError> {
        if rules.allow_private {
            return Ok(Vec::new());
        }
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return self.public(vec![address]).map(|_| Vec::new());
        }
        let failed = |source| RemoteError::Lookup { host: self.host.clone(), source };
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        let found = match tokio::time::timeout(LOOKUP_LIMIT, lookup).await {
            Ok(found) => found.map_err(failed)?,
            Err(_) => return Err(failed(std::io::Error::from(std::io::ErrorKind::TimedOut))),
        };
        let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        if addresses.is_empty() {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::NotFound)));
        }
        self.public(addresses)
    }

    fn public(&self, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, RemoteError> {
        match addresses.iter().find(|address| !is_public(**address)) {
            Some(address) => Err(RemoteError::Private { host: self.host.clone(), address: *address }),
            None => {
                addresses.truncate(ADDRESSES_MAX);
                Ok(addresses)
            }
        }
    }

    /// Whether another address leads to the same repository: a directory that was cloned from it may be adopted.
    pub fn is_same(&self, other: &str, rules: &Rules) -> bool {
        let bare = |url: &str| url.trim_end_matches('/').trim_end_matches(".git").to_owned();
        Self::parse(other, rules).is_ok_and(|other| bare(&other.url) == bare(&self.url))
    }
}

/// `user@host:path` as `ssh://user@host/path`.
fn of_scp(text: &str) -> Result<String, RemoteError> {
    let invalid = || RemoteError::Invalid { problem: "is not scheme://host/path" };
    let (host, path) = text.split_once(':').ok_or_else(invalid)?;
    if !host.contains('@') || host.contains('/') || path.is_empty() {
        return Err(invalid());
    }
    Ok(format!("ssh://{host}/{}", path.trim_start_matches('/')))
}

/// What ssh and curl take for a host, and for nothing else such as an option.
fn is_host(host: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let is_name = !host.is_empty() && !host.starts_with('-') && host.chars().all(allowed);
    is_name || host.parse::<IpAddr>().is_ok()
}

fn is_user(user: &str) -> bool {
    !user.starts_with('-') && user.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Whether a host may be used, and if so whether it is named, not only let in by a `*`.
pub(super) fn allowed(host: &str, port: u16, rules: &[String]) -> Option<bool> {
    let fits = |rule: &&String| {
        let (pattern, wanted) = match rule.rsplit_once(':') {
            Some((pattern, digits))
                if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && !pattern.ends_with(':') =>
            {
                (pattern, digits.parse::<u16>().ok())
            }
            Some(_) | None => (rule.as_str(), None),
        };
        let pattern = pattern.trim_matches(['[', ']']);
        let is_host = pattern == "*" || pattern == host || pattern.strip_prefix('*').is_some_and(|domain| host.ends_with(domain));
        is_host && wanted.is_none_or(|wanted| wanted == port)
    };
    let fitting: Vec<&String> = rules.iter().filter(fits).collect();
    (!fitting.is_empty()).then(|| fitting.iter().any(|rule| !rule.starts_with('*')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rules(hosts: &[&str]) -> Rules {
        Rules { allow_hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), ..Rules::default() }
    }

    #[test]
    fn only_https_and_ssh_and_only_plain_addresses() {
        for good in ["https://example.org/a.git", "ssh://git@example.org:2222/a", "git@example.org:a/b.git", "https://[2606:4700::1]/a"] {
            assert!(Remote::parse(good, &rules(&["*"])).is_ok(), "{good}: {:?}", Remote::parse(good, &rules(&["*"])));
        }
        for bad in [
            "",
            "http://example.org/a",
            "git://example.org/a",
            "file:///etc",
            "/etc/passwd",
            "../x",
            "ext::sh -c id",
            "ext::sh",
            "fd::3",
            "https::https://x/a",
            "--upload-pack=id",
            "-oProxyCommand=id",
            "ssh://-oProxyCommand=id/x",
            "ssh://git@-oProxyCommand=id/x",
            "-x@example.org:a",
            "https://user:pass@example.org/a",
            "https://user@example.org/a",
            "ssh://git:pass@example.org/a",
            "https://example.org/a\nb",
            "https://example.org/a b",
            "https://example.org/",
            "https:///a",
            "javascript:alert(1)",
        ] {
            assert!(Remote::parse(bad, &rules(&["*"])).is_err(), "{bad}");
        }
        assert!(Remote::parse(&format!("https://example.org/{}", "x".repeat(URL_BYTES_MAX)), &rules(&["*"])).is_err());
    }

    #[test]
    fn a_host_is_named_or_let_in_or_refused() {
        let named =
            |host: &str, allowed: &[&str]| Remote::parse(&format!("https://{host}/a"), &rules(allowed)).ok().map(|remote| remote.named);
        assert_eq!(named("example.org", &["*"]), Some(false));
        assert_eq!(named("example.org", &["*", "example.org"]), Some(true));
        assert_eq!(named("git.example.org", &["*.example.org"]), Some(false));
        assert_eq!(named("badexample.org", &["*.example.org"]), None);
        assert_eq!(named("EXAMPLE.org:8443", &["example.org:8443"]), Some(true));
        assert_eq!(named("example.org", &["example.org:8443"]), None);
        assert_eq!(named("[2606:4700::1]", &["[2606:4700::1]"]), Some(true));
        assert_eq!(named("example.org", &[]), None);
    }

    #[tokio::test]
    async fn private_addresses_are_refused_however_they_are_written() {
        let rules = rules(&["*"]);
        for host in ["127.0.0.1", "0x7f.1", "2130706433", "[::1]", "10.0.0.1", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254"] {
            let remote = Remote::parse(&format!("https://{host}/a"), &rules).unwrap();
            let refused = remote.resolve(&rules).await.unwrap_err();
            assert!(matches!(refused, RemoteError::Private { .. }), "{host}: {refused}");
        }
        let allowed = Rules { allow_private: true, ..rules };
        let remote = Remote::parse("https://127.0.0.1/a", &allowed).unwrap();
        assert!(remote.resolve(&allowed).await.unwrap().is_empty());
    }

    #[test]
    fn one_repository_has_several_spellings() {
        let rules = rules(&["*"]);
        let remote = Remote::parse("https://example.org/a.git", &rules).unwrap();
        assert!(remote.is_same("https://EXAMPLE.org/a/", &rules) && !remote.is_same("https://example.org/b", &rules));
        let ssh = Remote::parse("git@example.org:a.git", &rules).unwrap();
        assert!(ssh.is_same("ssh://git@example.org/a", &rules));
    }
}
