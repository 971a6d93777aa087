//! Where a request comes from, for logs and traces: the other end of the connection, or who a proxy says it is.
//!
//! Never a reason to let somebody in: whoever sits on a trusted address may write anything into the header.

use std::net::{IpAddr, SocketAddr};

use http::header::{HeaderMap, HeaderName};
use openclaw_config::IpRange;

use super::Peer;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The nearest address on the request's way that is not one of `trusted`; none for an operator at the admin socket.
///
/// Each proxy appends whom it met, so only what stands to the right of an untrusted address is the word of a trusted proxy.
pub(super) fn address(peer: Peer, headers: &HeaderMap, trusted: &[IpRange]) -> Option<IpAddr> {
    let Peer::Tcp(peer) = peer else { return None };
    let mut nearest = peer.ip().to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(address));
    if !is_trusted(nearest) {
        return Some(nearest);
    }
    let lines: Vec<_> = headers.get_all(FORWARDED_FOR).iter().collect();
    let named = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    for name in named {
        let Some(address) = parse(name.trim()) else { break };
        nearest = address;
        if !is_trusted(nearest) {
            break;
        }
    }
    Some(nearest)
}

/// `192.0.2.1`, `2001:db8::1`, and both as some proxies write them, with a port.
fn parse(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let address = bare.parse().ok().or_else(|| name.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn found(peer: &str, forwarded: &[&'static str]) -> String {
        let trusted: Vec<IpRange> =
            ["10.0.0.0/8", "127.0.0.1", "2001:db8::/32"].map(|range| range.parse().unwrap()).into();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
        }
        let peer = Peer::Tcp(SocketAddr::new(peer.parse().unwrap(), 4242));
        address(peer, &headers, &trusted).unwrap().to_string()
    }

    #[test]
    fn who_is_not_a_trusted_proxy_speaks_for_itself_alone() {
        assert_eq!(found("192.0.2.7", &["198.51.100.1"]), "192.0.2.7");
        assert_eq!(found("10.1.2.3", &[]), "10.1.2.3");
        assert_eq!(address(Peer::Operator, &HeaderMap::new(), &[]), None);
    }

    #[test]
    fn the_nearest_address_that_is_not_a_trusted_proxys_counts() {
        assert_eq!(found("127.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(found("::ffff:10.0.0.1", &["198.51.100.1, 10.0.0.9"]), "198.51.100.1");
        assert_eq!(
            found("10.0.0.1", &["203.0.113.5, 198.51.100.1"]),
            "198.51.100.1",
            "what a client wrote is no proxy's word"
        );
        assert_eq!(
            found("10.0.0.1", &["203.0.113.5", "198.51.100.1 , 10.0.0.2"]),
            "198.51.100.1",
            "lines are one list"
        );
        assert_eq!(found("10.0.0.1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2", "all of the way is ours");
        assert_eq!(
            found("10.0.0.1", &["198.51.100.1, somebody"]),
            "10.0.0.1",
            "nothing is believed past what is no address"
        );
        assert_eq!(found("2001:db8::1", &["[2001:dead::5]:443"]), "2001:dead::5");
        assert_eq!(found("10.0.0.1", &["198.51.100.1:5060"]), "198.51.100.1");
    }
}
