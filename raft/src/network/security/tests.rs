//! Both ends over real loopback sockets, with certificates made here.

use super::*;

#[test]
fn plaintext_is_for_loopback_alone() {
    for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(PeerSecurity::plaintext(loopback.parse().unwrap()).is_ok(), "{loopback}");
    }
    for open in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[fe80::1]:1"] {
        let error = PeerSecurity::plaintext(open.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("cluster.peer.tls.ca"), "{error}");
    }
}
