//! Addresses and networks, as the configuration names them.

use std::{fmt, net::IpAddr, str::FromStr};

/// An address, or a network of them: `10.0.0.7`, `10.0.0.0/8`, `fd00::/8`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether the address is of it; an IPv4 address in IPv6's clothes is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && first_of(address, self.bits) == self.address
    }
}

/// The first address of the network of so many bits that holds `address`.
fn first_of(address: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| format!("`{text}` is no address or network"))?;
        let address = address.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match length {
            None => most,
            Some(length) => {
                let bits = length.parse().ok().filter(|bits: &u8| *bits <= most);
                bits.ok_or_else(|| format!("`{text}`: a network's length is a number from 0 to {most}"))?
            }
        };
        let first = first_of(address, bits);
        if first != address {
            return Err(format!("`{text}` is an address within a network: write {first}/{bits}"));
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_alone() {
        let cases = [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.7", "::ffff:10.0.0.7", "10.0.0.6"),
            ("0.0.0.0/0", "1.2.3.4", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("::1", "::1", "::2"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ];
        for (network, within, outside) in cases {
            let network: Network = network.parse().expect(network);
            assert!(network.contains(within.parse().expect("an address")), "{network} {within}");
            assert!(!network.contains(outside.parse().expect("an address")), "{network} {outside}");
        }
        for odd in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "proxy", "10.0.0.0/8/8"]
        {
            assert!(odd.parse::<Network>().is_err(), "{odd}");
        }
        let meant = "10.1.2.3/8".parse::<Network>().expect_err("an address within it");
        assert!(meant.contains("10.0.0.0/8"), "{meant}");
    }
}
