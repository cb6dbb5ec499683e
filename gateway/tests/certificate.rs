//! Certificates from files, and their exchange while the gateway runs.

#![allow(clippy::unwrap_used)]

mod kit;

use std::path::Path;

use fanfare_gateway::{Config, Gateway, ResumeKeys, TlsSource, fingerprint};
use fanfare_proto::{Code, FrameType};
use kit::House;

fn write(folder: &Path) -> rustls_pki_types::CertificateDer<'static> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(folder.join("certificate.pem"), key.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.signing_key.serialize_pem()).unwrap();
    key.cert.der().clone()
}

fn source(folder: &Path) -> TlsSource {
    TlsSource::Files { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
}

#[tokio::test]
async fn a_new_certificate_is_served_to_new_connections() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(folder.path());
    let house = House::new(|config| config.tls = Some(source(folder.path())));
    assert_eq!(house.gateway.certificate_sha256(), Some(fingerprint(&first)));
    let mut open = kit::ws::connect_tls(house.address(), &first).await;
    open.send(&house.hello(5)).await;
    open.frame(FrameType::Welcome).await;

    // Half an exchange: the pair does not fit, the old one stays.
    let key = std::fs::read(folder.path().join("key.pem")).unwrap();
    let second = write(folder.path());
    let new_key = std::fs::read(folder.path().join("key.pem")).unwrap();
    std::fs::write(folder.path().join("key.pem"), key).unwrap();
    assert_eq!(house.gateway.reload_certificate().unwrap_err().code(), Code::CERTIFICATE);
    assert_eq!(house.gateway.certificate_sha256(), Some(fingerprint(&first)));
    std::fs::write(folder.path().join("key.pem"), new_key).unwrap();
    house.gateway.reload_certificate().unwrap();
    assert_eq!(house.gateway.certificate_sha256(), Some(fingerprint(&second)));
    kit::ws::connect_tls(house.address(), &second).await;
    kit::quic::connect(house.address(), &second).await;
    open.send(&kit::ping(1)).await;
    open.frame(FrameType::Pong).await;

    // By itself, when the files change.
    let third = write(folder.path());
    kit::until("the files are seen to have changed", || {
        house.gateway.certificate_sha256() == Some(fingerprint(&third))
    })
    .await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let issuer = kit::token::Issuer::new();
    let start = |config| {
        let router = std::sync::Arc::new(kit::router::Router::default());
        Gateway::start(config, router, issuer.verifier(), ResumeKeys::new(&[])).unwrap_err()
    };
    let folder = tempfile::tempdir().unwrap();
    let error = start(Config { tls: Some(source(folder.path())), ..Config::default() });
    assert_eq!(error.code(), Code::CERTIFICATE);
    assert!(error.to_string().contains("certificate.pem"), "{error}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = start(Config { listen: vec![taken.local_addr().unwrap()], ..Config::default() });
    assert_eq!(error.code(), Code::LISTEN_FAILED);
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = start(Config { listen: vec![taken.local_addr().unwrap()], ..Config::default() });
    assert_eq!(error.code(), Code::LISTEN_FAILED);
}
