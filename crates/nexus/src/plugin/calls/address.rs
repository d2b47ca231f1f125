//! Which addresses the name of a granted host may lead to. A name is whoever's who owns its zone: it may
//! answer with an address of this machine or its network, once or from the second time on.

use crate::supervisor::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// The one name that means this machine.
pub(super) const LOCALHOST: &str = "localhost";

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Asks for the addresses of a name.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// A name that leads where no name may.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` has the address {address}, which is not a public one; to allow it, grant the address itself, or localhost")]
pub(super) struct NotPublic {
    name: String,
    address: IpAddr,
}

/// Resolves names for connections: what is connected to is what was looked at.
#[derive(Clone)]
pub(super) struct Resolver(pub(super) Lookup);

impl Resolver {
    /// As this machine resolves names.
    pub(super) fn of_system() -> Self {
        Self(Arc::new(|name: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            Box::pin(async move {
                let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        }))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(resolve(self.0.clone(), name.as_str().to_owned()))
    }
}

async fn resolve(lookup: Lookup, name: String) -> Result<Addrs, BoxError> {
    let addresses = if name.eq_ignore_ascii_case(LOCALHOST) {
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
    } else {
        public(&name, lookup(name.clone()).await?)?
    };
    // Port 0 stands for the URL's.
    Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))))
}

/// All of them, if each is public: one that isn't says that the name is not what it seems.
fn public(name: &str, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, NotPublic> {
    match addresses.iter().find(|address| !is_public(**address)) {
        Some(address) => Err(NotPublic { name: name.to_owned(), address: *address }),
        None => Ok(addresses),
    }
}

/// Whether an address is anybody's on the internet (the IANA registries of special-purpose addresses).
pub(crate) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation();
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let [a, b, c, d, e, f, g, h] = address.segments();
    if [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0] {
        // NAT64: an IPv4 address, as a network without IPv4 sees it.
        let ([g1, g2], [h1, h2]) = (g.to_be_bytes(), h.to_be_bytes());
        return is_public_v4(Ipv4Addr::new(g1, g2, h1, h2));
    }
    let is_unicast = (0x2000..0x4000).contains(&a);
    // Teredo and others of 2001::/23, documentation, 6to4, which has an IPv4 address in it.
    let is_special = (a == 0x2001 && (b < 0x200 || b == 0xdb8)) || a == 0x2002 || (a == 0x3fff && b < 0x1000);
    is_unicast && !is_special
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_anybodys_is_public() {
        for text in ["1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "223.255.255.255", "2606:4700::1111", "64:ff9b::101:101"] {
            assert!(is_public(ip(text)), "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "3fff::1",
            "100::1",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn one_address_that_is_not_public_is_one_too_many() {
        let mixed = vec![ip("1.1.1.1"), ip("127.0.0.1")];
        let error = public("api.example.org", mixed).unwrap_err();
        assert!(error.to_string().contains("127.0.0.1"), "{error}");
        assert_eq!(public("api.example.org", vec![ip("1.1.1.1")]).unwrap(), [ip("1.1.1.1")]);
    }

    #[tokio::test]
    async fn localhost_is_this_machine_and_nobody_is_asked() {
        let lookup: Lookup = Arc::new(|name: String| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            Box::pin(async move { Err(io::Error::other(format!("{name} was looked up"))) })
        });
        let found: Vec<SocketAddr> = resolve(lookup, "LOCALHOST".to_owned()).await.unwrap_or_else(|error| panic!("{error}")).collect();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
