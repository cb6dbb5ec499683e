//! Bad forms of tokens, each refused with its number.

use aws_lc_rs::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use serde_json::{Value, json};

use super::*;

const NOW_S: u64 = 1_800_000_000;

struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn verifier(&self) -> Verifier {
        Verifier::new("fanfare", "chat", &[("k1".into(), self.0.public_key().as_ref().try_into().unwrap())])
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.0.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "typ": "fanfare+jwt", "kid": "k1" })
}

fn claims() -> Value {
    json!({ "iss": "fanfare", "aud": "chat", "sub": "42", "iat": NOW_S - 60, "exp": NOW_S + 840 })
}

fn with(mut value: Value, key: &str, new: Value) -> String {
    match new {
        Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
        new => value[key] = new,
    }
    value.to_string()
}

#[test]
fn a_good_token_is_taken_to_the_end_of_its_leeway() {
    let issuer = Issuer::new();
    let token = issuer.sign(&header().to_string(), &claims().to_string());
    let (until_ms, issued_s) = ((NOW_S + 840) * 1000, NOW_S - 60);
    let verified = Verified { user: UserId(42), until_ms, issued_s, device: None, own: true };
    let verifier = issuer.verifier();
    assert_eq!(verifier.verify(&token, NOW_S * 1000), Ok(verified));
    assert_eq!(verifier.verify(&token, (NOW_S + 869) * 1000), Ok(verified));
    assert_eq!(verifier.verify(&token, (NOW_S + 870) * 1000), Err(Code::TOKEN_EXPIRED));
    assert_eq!(verifier.verify(&token, (NOW_S - 90) * 1000), Ok(verified));
    assert_eq!(verifier.verify(&token, (NOW_S - 91) * 1000), Err(Code::TOKEN_CLAIMS));
    // Claims that are not ours change nothing.
    let more = with(claims(), "name", json!("alice"));
    assert_eq!(verifier.verify(&issuer.sign(&header().to_string(), &more), NOW_S * 1000), Ok(verified));
}

#[test]
fn bad_headers_are_refused() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    for (key, value, code) in [
        ("alg", json!("none"), Code::TOKEN_MALFORMED),
        ("alg", json!("HS256"), Code::TOKEN_MALFORMED),
        ("alg", json!("RS256"), Code::TOKEN_MALFORMED),
        ("alg", json!("eddsa"), Code::TOKEN_MALFORMED),
        ("alg", Value::Null, Code::TOKEN_MALFORMED),
        ("typ", json!("JWT"), Code::TOKEN_MALFORMED),
        ("typ", Value::Null, Code::TOKEN_MALFORMED),
        ("kid", json!("k2"), Code::TOKEN_SIGNATURE),
        ("kid", json!("../../k1"), Code::TOKEN_SIGNATURE),
        ("kid", json!(1), Code::TOKEN_MALFORMED),
        ("kid", Value::Null, Code::TOKEN_MALFORMED),
        ("jku", json!("https://evil.test/keys"), Code::TOKEN_MALFORMED),
        ("x5u", json!("https://evil.test/chain"), Code::TOKEN_MALFORMED),
        ("jwk", json!({ "kty": "OKP" }), Code::TOKEN_MALFORMED),
        ("crit", json!(["exp"]), Code::TOKEN_MALFORMED),
        ("b64", json!(false), Code::TOKEN_MALFORMED),
    ] {
        let token = issuer.sign(&with(header(), key, value.clone()), &claims().to_string());
        assert_eq!(verifier.verify(&token, NOW_S * 1000), Err(code), "{key} {value}");
    }
}

#[test]
fn bad_claims_are_refused() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    for (key, value, code) in [
        ("exp", Value::Null, Code::TOKEN_CLAIMS),
        ("exp", json!((NOW_S + 840).to_string()), Code::TOKEN_CLAIMS),
        ("exp", json!((NOW_S + 840) as f64 + 0.5), Code::TOKEN_CLAIMS),
        ("exp", json!(-1), Code::TOKEN_CLAIMS),
        ("exp", json!(u64::MAX), Code::TOKEN_CLAIMS),
        ("exp", json!(NOW_S - 31), Code::TOKEN_EXPIRED),
        ("iat", Value::Null, Code::TOKEN_CLAIMS),
        ("iat", json!("now"), Code::TOKEN_CLAIMS),
        ("iat", json!(NOW_S + 31), Code::TOKEN_CLAIMS),
        ("nbf", json!(NOW_S + 31), Code::TOKEN_CLAIMS),
        ("nbf", json!("soon"), Code::TOKEN_CLAIMS),
        ("iss", json!("other"), Code::TOKEN_CLAIMS),
        ("iss", Value::Null, Code::TOKEN_CLAIMS),
        ("aud", json!("fanfare"), Code::TOKEN_CLAIMS),
        ("aud", json!(["chat"]), Code::TOKEN_CLAIMS),
        ("aud", Value::Null, Code::TOKEN_CLAIMS),
        ("sub", Value::Null, Code::TOKEN_CLAIMS),
        ("sub", json!(42), Code::TOKEN_CLAIMS),
        ("sub", json!("0"), Code::TOKEN_CLAIMS),
        ("sub", json!("+42"), Code::TOKEN_CLAIMS),
        ("sub", json!("042"), Code::TOKEN_CLAIMS),
        ("sub", json!("alice"), Code::TOKEN_CLAIMS),
        ("sub", json!(""), Code::TOKEN_CLAIMS),
        ("sub", json!((1u64 << 63).to_string()), Code::TOKEN_CLAIMS),
    ] {
        let token = issuer.sign(&header().to_string(), &with(claims(), key, value.clone()));
        assert_eq!(verifier.verify(&token, NOW_S * 1000), Err(code), "{key} {value}");
    }
    // The same claim twice.
    let twice = claims().to_string().replacen('{', "{\"sub\":\"1\",", 1);
    let token = issuer.sign(&header().to_string(), &twice);
    assert_eq!(verifier.verify(&token, NOW_S * 1000), Err(Code::TOKEN_CLAIMS));
}

#[test]
fn bad_signatures_and_shapes_are_refused() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    let good = issuer.sign(&header().to_string(), &claims().to_string());
    let parts: Vec<&str> = good.split('.').collect();
    let other = Issuer::new().sign(&header().to_string(), &claims().to_string());
    let swapped = format!("{}.{}", &good[..good.rfind('.').unwrap()], other.rsplit('.').next().unwrap());
    // The public key as an HMAC key.
    let message = format!("{}.{}", parts[0], parts[1]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, issuer.0.public_key().as_ref());
    let confused = format!("{message}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes())));
    for (token, code) in [
        (String::new(), Code::TOKEN_MALFORMED),
        ("...".into(), Code::TOKEN_MALFORMED),
        (parts[0].into(), Code::TOKEN_MALFORMED),
        (message.clone(), Code::TOKEN_MALFORMED),
        (format!("{message}."), Code::TOKEN_SIGNATURE),
        (format!("{good}.x"), Code::TOKEN_MALFORMED),
        (format!("{good}="), Code::TOKEN_MALFORMED),
        (format!(" {good}"), Code::TOKEN_MALFORMED),
        (format!("{message}.!!!"), Code::TOKEN_MALFORMED),
        (other, Code::TOKEN_SIGNATURE),
        (swapped, Code::TOKEN_SIGNATURE),
        (confused, Code::TOKEN_SIGNATURE),
        (issuer.sign(&header().to_string(), "not json"), Code::TOKEN_CLAIMS),
        (issuer.sign(&header().to_string(), "[1,2,3]"), Code::TOKEN_CLAIMS),
        (issuer.sign("{}", &claims().to_string()), Code::TOKEN_MALFORMED),
        (
            issuer.sign(&header().to_string(), &with(claims(), "x", json!("y".repeat(4096)))),
            Code::TOKEN_MALFORMED,
        ),
    ] {
        assert_eq!(verifier.verify(&token, NOW_S * 1000), Err(code), "{token}");
    }
    // Every character matters.
    for at in 0..good.len() {
        let mut changed = good.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verifier.verify(&changed, NOW_S * 1000).is_err(), "{at}");
    }
    for cut in 0..good.len() {
        assert!(verifier.verify(&good[..cut], NOW_S * 1000).is_err(), "{cut}");
    }
}

#[test]
fn keys_rotate() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let verifier = old.verifier();
    let token = old.sign(&header().to_string(), &claims().to_string());
    let public = |issuer: &Issuer| -> [u8; 32] { issuer.0.public_key().as_ref().try_into().unwrap() };
    let clone = verifier.clone();
    verifier.rotate(&[("k1".into(), public(&old)), ("k2".into(), public(&new))]);
    let newer = new.sign(&with(header(), "kid", json!("k2")), &claims().to_string());
    assert!(clone.verify(&token, NOW_S * 1000).is_ok() && clone.verify(&newer, NOW_S * 1000).is_ok());
    verifier.rotate(&[("k2".into(), public(&new))]);
    assert_eq!(clone.verify(&token, NOW_S * 1000), Err(Code::TOKEN_SIGNATURE));
}

#[test]
fn a_token_of_a_login_is_bound_to_its_device() {
    let issuer = Issuer::new();
    let verifier = issuer.verifier();
    let sign = |claims: &str| issuer.sign(&header().to_string(), claims);
    let mut bound = claims();
    (bound["did"], bound["dgn"]) = (json!("7"), json!(3));
    let verified = verifier.verify(&sign(&bound.to_string()), NOW_S * 1000).unwrap();
    assert_eq!(verified.device, Some((DeviceId(7), 3)));
    let proof = Proof::Token { issued_s: NOW_S - 60, generation: Some(3) };
    assert_eq!(verified.proof(DeviceId(7)), Ok(proof));
    assert_eq!(verified.proof(DeviceId(8)), Err(Code::TOKEN_CLAIMS));
    for (key, value) in [
        ("did", json!(7)),
        ("did", json!("07")),
        ("did", json!("+7")),
        ("did", Value::Null),
        ("dgn", Value::Null),
    ] {
        let odd = sign(&with(bound.clone(), key, value.clone()));
        assert_eq!(verifier.verify(&odd, NOW_S * 1000), Err(Code::TOKEN_CLAIMS), "{key} {value}");
    }
}

#[test]
fn another_issuer_speaks_for_itself_alone_and_its_keys_rotate() {
    let (own, other) = (Issuer::new(), Issuer::new());
    let verifier = own.verifier();
    let public = |issuer: &Issuer| -> [u8; 32] { issuer.0.public_key().as_ref().try_into().unwrap() };
    // It may even choose the same id for its key.
    assert!(verifier.trust("shop", &[("k1".into(), public(&other))]));
    assert!(!verifier.trust("shop", &[("k1".into(), public(&other))]));
    let verify = |issuer: &Issuer, claims: &str| {
        verifier.verify(&issuer.sign(&header().to_string(), claims), NOW_S * 1000)
    };
    let of_shop = with(claims(), "iss", json!("shop"));
    assert!(verify(&other, &of_shop).is_ok_and(|verified| !verified.own));
    assert!(verify(&own, &claims().to_string()).is_ok_and(|verified| verified.own));
    assert_eq!(verify(&other, &claims().to_string()), Err(Code::TOKEN_CLAIMS), "shop signs as if it were we");
    assert_eq!(verify(&own, &of_shop), Err(Code::TOKEN_CLAIMS));
    let next = Issuer::new();
    assert!(verifier.trust("shop", &[("k1".into(), public(&next))]));
    assert_eq!(verify(&other, &of_shop), Err(Code::TOKEN_SIGNATURE));
    assert!(verify(&next, &of_shop).is_ok());
    assert!(verifier.trust("shop", &[]));
    assert_eq!(verify(&next, &of_shop), Err(Code::TOKEN_SIGNATURE));
    assert!(verify(&own, &claims().to_string()).is_ok());
}
