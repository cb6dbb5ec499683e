//! Whose address a request has: that of the connection, or, behind reverse proxies that the configuration names, what they
//! say about it.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use crate::network::Network;

/// What proxies say: the addresses that a request came by, each proxy's peer behind what it was given.
const HEADER: &str = "x-forwarded-for";

/// What limits take for one address: of IPv6 a network of 64 bits, all of which one machine may have.
pub fn limited_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        address => address,
    }
}

/// Whether the address is of one of the networks.
pub fn is_of(networks: &[Network], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// The client's address: the last one that the proxies name and that is no proxy itself. Everything before it was said by
/// the client, who may say anything. The connection's own where it is no proxy's, or where what it says does not read.
pub fn client_address(peer: IpAddr, proxies: &[Network], headers: &HeaderMap) -> IpAddr {
    if !is_of(proxies, peer) {
        return peer;
    }
    let lines = headers.get_all(HEADER).iter().rev();
    for line in lines {
        let Ok(line) = line.to_str() else { return peer };
        for hop in line.rsplit(',') {
            let Some(hop) = parse(hop.trim()) else { return peer };
            if !is_of(proxies, hop) {
                return hop;
            }
        }
    }
    peer
}

/// An address; some proxies write its port, too.
fn parse(hop: &str) -> Option<IpAddr> {
    let with_port = || hop.parse().ok().map(|address: SocketAddr| address.ip());
    hop.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_that_is_no_proxys_is_the_clients() {
        let proxies: Vec<Network> =
            ["10.0.0.0/8", "::1"].iter().map(|text| text.parse().expect("a network")).collect();
        let cases: &[(&str, &[&str], &str)] = &[
            // Who is no proxy is who it is, whatever it says.
            ("1.1.1.1", &["2.2.2.2"], "1.1.1.1"),
            ("10.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            ("::ffff:10.0.0.1", &["2.2.2.2"], "2.2.2.2"),
            ("::1", &["2001:db8::7"], "2001:db8::7"),
            // What the client said itself stands before what the proxies add.
            ("10.0.0.1", &["9.9.9.9, 2.2.2.2, 10.0.0.3"], "2.2.2.2"),
            ("10.0.0.1", &["9.9.9.9", "2.2.2.2", "10.0.0.3,10.0.0.4"], "2.2.2.2"),
            ("10.0.0.1", &["rubbish, 2.2.2.2"], "2.2.2.2"),
            ("10.0.0.1", &["2.2.2.2:4711"], "2.2.2.2"),
            ("10.0.0.1", &["[2001:db8::7]:4711"], "2001:db8::7"),
            // Nothing that reads: the proxy itself.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["unknown"], "10.0.0.1"),
            ("10.0.0.1", &["2.2.2.2, rubbish"], "10.0.0.1"),
            ("10.0.0.1", &["2.2.2.2,"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.3"], "10.0.0.1"),
        ];
        for (peer, lines, wanted) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(HEADER, line.parse().expect("a value"));
            }
            let found = client_address(peer.parse().expect("an address"), &proxies, &headers);
            assert_eq!(found.to_canonical().to_string(), *wanted, "{peer} {lines:?}");
        }
        let mut headers = HeaderMap::new();
        headers.append(HEADER, axum::http::HeaderValue::from_bytes(b"2.2.2.2, \xff").expect("a value"));
        let peer = IpAddr::from([10, 0, 0, 1]);
        assert_eq!(client_address(peer, &proxies, &headers), peer);
    }

    #[test]
    fn a_network_of_ipv6_is_limited_as_one() {
        let limited = |text: &str| limited_as(text.parse().expect("an address")).to_string();
        assert_eq!(limited("2001:db8::7:0:0:1"), "2001:db8::");
        assert_eq!(limited("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(limited("::1"), "::1");
    }
}
