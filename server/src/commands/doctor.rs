//! `fanfare doctor`: whether this machine is fit to run a server. Every check says what it saw and, where that is not
//! right, the command that fixes it.

mod machine;
mod x509;

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use clap::ValueEnum;
use fanfare_proto::Code;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};

use super::on_runtime;
use crate::{
    admin_client::AdminClient,
    admin_file::AdminFile,
    certificate::{self, SelfSigned},
    cli::{DoctorCheck, Global},
    clock,
    config::{Configuration, Layers, Plain, ValueOrigin},
    failure::{Outcome, exit},
};

/// A certificate from files should last so long.
const CERTIFICATE_LEFT_MIN_S: u64 = 14 * 86_400;
/// The folder where no configuration can be read.
const FOLDER_DEFAULT: &str = "./fanfare-data";

/// How a check went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Grade {
    Ok,
    Warning,
    Failed,
}

/// What a check found.
#[derive(Debug)]
struct Finding {
    check: DoctorCheck,
    /// What was looked at.
    what: String,
    grade: Grade,
    /// What was seen.
    detail: String,
    code: Option<Code>,
    /// The command that fixes it.
    fix: Option<String>,
}

impl Finding {
    fn ok(check: DoctorCheck, what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { check, what: what.into(), grade: Grade::Ok, detail: detail.into(), code: None, fix: None }
    }

    fn warning(mut self, code: Code, fix: impl Into<String>) -> Self {
        (self.grade, self.code, self.fix) = (Grade::Warning, Some(code), Some(fix.into()));
        self
    }

    fn failed(self, code: Code, fix: impl Into<String>) -> Self {
        Self { grade: Grade::Failed, ..self.warning(code, fix) }
    }

    fn json(&self) -> Value {
        json!({
            "check": name(self.check),
            "what": self.what,
            "status": match self.grade {
                Grade::Ok => "ok",
                Grade::Warning => "warning",
                Grade::Failed => "failed",
            },
            "detail": self.detail,
            "code": self.code.map(|code| code.to_string()),
            "fix": self.fix,
        })
    }

    fn human(&self) -> String {
        let glyph = match self.grade {
            Grade::Ok => "[+]",
            Grade::Warning => "[!]",
            Grade::Failed => "[-]",
        };
        let code = self.code.map(|code| format!("   {code}")).unwrap_or_default();
        let mut text = format!("{glyph} {:16} {}{code}", self.what, self.detail);
        if let Some(fix) = &self.fix {
            text += &format!("\n      fix   {fix}");
        }
        text
    }
}

fn name(check: DoctorCheck) -> String {
    check.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Runs the checks; exit 5 where one failed.
pub fn run(global: &Global, only: &[DoctorCheck]) -> Outcome<u8> {
    let wanted = |check: DoctorCheck| only.is_empty() || only.contains(&check);
    let mut findings = Vec::new();
    let (configuration, own) = configuration(global);
    // Where it cannot be read the checks that need it cannot run, which is a finding whatever was asked for.
    if wanted(DoctorCheck::Configuration) || configuration.is_none() {
        findings.push(own);
    }
    let folder = configuration.as_ref().map(|(configuration, _)| configuration.folder.clone());
    let folder = folder.or_else(|| global.data.clone()).unwrap_or_else(|| FOLDER_DEFAULT.into());
    if wanted(DoctorCheck::Folder) {
        findings.extend(data_folder(&folder));
    }
    if wanted(DoctorCheck::Space) {
        findings.push(machine::space(&existing(&folder)));
    }
    if wanted(DoctorCheck::Sync) {
        findings.push(machine::sync(&existing(&folder)));
    }
    if wanted(DoctorCheck::Files) {
        findings.push(machine::files());
    }
    if wanted(DoctorCheck::Udp) {
        findings.extend(machine::udp());
    }
    if let Some((configuration, listen)) = &configuration {
        if wanted(DoctorCheck::Ports) {
            findings.extend(ports(global, configuration));
        }
        if wanted(DoctorCheck::Certificate) {
            findings.push(certificate(configuration, *listen == ValueOrigin::Default));
        }
    }
    if wanted(DoctorCheck::Clock) {
        findings.push(machine::clock());
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let (failed, warnings, passed) = (count(Grade::Failed), count(Grade::Warning), count(Grade::Ok));
    let result = json!({
        "failed": failed,
        "warnings": warnings,
        "passed": passed,
        "checks": findings.iter().map(Finding::json).collect::<Vec<_>>(),
    });
    global.output().object("doctor", result, || {
        let mut lines: Vec<String> = findings.iter().map(Finding::human).collect();
        let end =
            findings.iter().filter(|finding| finding.grade != Grade::Ok).find_map(|finding| finding.code);
        let more = end.map(|code| format!(" · fanfare explain {code}")).unwrap_or_default();
        let plural = if warnings == 1 { "" } else { "s" };
        lines.push(format!("{failed} failed, {warnings} warning{plural}, {passed} passed{more}"));
        lines.join("\n")
    });
    Ok(if failed > 0 { exit::CHECKS } else { exit::OK })
}

/// The configuration with where `gateway.listen` comes from, and what there is to say about it.
fn configuration(global: &Global) -> (Option<(Configuration, ValueOrigin)>, Finding) {
    let read = Layers::read(global, None)
        .and_then(|layers| layers.configuration().map(|configuration| (layers, configuration)));
    match read {
        Ok((layers, configuration)) => {
            let set = layers.all().filter(|(_, _, origin)| **origin != ValueOrigin::Default).count();
            let listen = layers.all().find(|(key, ..)| key.name == "gateway.listen");
            let listen = listen.map_or(ValueOrigin::Default, |(_, _, origin)| origin.clone());
            let detail = format!("valid, {set} keys set");
            let finding = Finding::ok(DoctorCheck::Configuration, "configuration", detail);
            (Some((configuration, listen)), finding)
        }
        Err(problems) => {
            let detail =
                problems.first().map_or_else(String::new, |one| format!("{} {}", one.code, one.what));
            let finding = Finding::ok(DoctorCheck::Configuration, "configuration", detail)
                .failed(Code::DOCTOR_CONFIGURATION, "fanfare config check");
            (None, finding)
        }
    }
}

/// The path, or the nearest one above it that is there.
fn existing(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    whole.ancestors().find(|path| path.exists()).map_or_else(|| "/".into(), Path::to_owned)
}

fn data_folder(folder: &Path) -> Vec<Finding> {
    let check = DoctorCheck::Folder;
    let shown = folder.display();
    if !folder.exists() {
        let above = existing(folder);
        let finding =
            Finding::ok(check, "data folder", format!("{shown} is not there yet: a start makes it"));
        return vec![match machine::writable(&above) {
            Ok(()) => finding,
            Err(error) => {
                let detail = format!("{shown} cannot be made in {}: {error}", above.display());
                Finding::ok(check, "data folder", detail)
                    .failed(Code::DOCTOR_FOLDER, "fanfare start --data DIR   (one that you may write)")
            }
        }];
    }
    if !folder.is_dir() {
        let finding = Finding::ok(check, "data folder", format!("{shown} is no folder"));
        return vec![finding.failed(Code::DOCTOR_FOLDER, "fanfare start --data DIR")];
    }
    if let Err(error) = machine::writable(folder) {
        let finding = Finding::ok(check, "data folder", format!("{shown} cannot be written: {error}"));
        return vec![finding.failed(Code::DOCTOR_FOLDER, format!("sudo chown -R $(id -un) {shown}"))];
    }
    let mut findings = vec![Finding::ok(check, "data folder", format!("{shown}, writable"))];
    if let Ok(metadata) = std::fs::metadata(folder) {
        let mode = metadata.permissions().mode() & 0o777;
        let finding = Finding::ok(check, "folder mode", format!("{mode:04o}"));
        findings.push(if mode & 0o077 == 0 {
            finding
        } else {
            finding.warning(Code::DOCTOR_FOLDER_MODE, format!("chmod 700 {shown}"))
        });
    }
    findings
}

/// Each port the server needs: free, or held by the server of this very folder.
fn ports(global: &Global, configuration: &Configuration) -> Vec<Finding> {
    let mine = AdminFile::read(&configuration.folder).filter(|_| {
        let admin = AdminClient::of_folder(configuration.folder.clone(), global.timeout);
        admin.is_ok_and(|admin| on_runtime(async { admin.get("/status").await }).is_ok())
    });
    let held = |address: SocketAddr, of: fn(&AdminFile) -> &str| {
        let file = mine.as_ref()?;
        let port = of(file).rsplit_once(':')?.1;
        (port.parse() == Ok(address.port())).then_some(file.pid)
    };
    let gateway: fn(&AdminFile) -> &str = |file| &file.gateway;
    let http: fn(&AdminFile) -> &str = |file| &file.address;
    let udp = UdpSocket::bind(configuration.listen).map(drop);
    let tcp = TcpListener::bind(configuration.listen).map(drop);
    let web = TcpListener::bind(configuration.http).map(drop);
    let mut findings = vec![
        port("QUIC (UDP)", "--listen", configuration.listen, udp, held(configuration.listen, gateway)),
        port("WebSocket (TCP)", "--listen", configuration.listen, tcp, held(configuration.listen, gateway)),
        port("HTTP (TCP)", "--http", configuration.http, web, held(configuration.http, http)),
    ];
    findings.extend(plain_http(configuration.http));
    findings
}

/// HTTP is served without TLS: tokens and passwords are for this machine, or for a proxy beside it.
fn plain_http(address: SocketAddr) -> Option<Finding> {
    let detail = format!("{address} can be reached from elsewhere, and has no TLS");
    let fix = "fanfare start --http 127.0.0.1:7080   behind a proxy that terminates TLS (http.proxies), or a tunnel";
    (!address.ip().is_loopback())
        .then(|| Finding::ok(DoctorCheck::Ports, "HTTP", detail).warning(Code::DOCTOR_HTTP, fix))
}

fn port(
    what: &str,
    flag: &str,
    address: SocketAddr,
    bound: std::io::Result<()>,
    own: Option<u32>,
) -> Finding {
    let finding = |detail: String| Finding::ok(DoctorCheck::Ports, what, detail);
    let Err(error) = bound else { return finding(format!("{address} is free")) };
    if let (ErrorKind::AddrInUse, Some(pid)) = (error.kind(), own) {
        return finding(format!("{address} is held by this folder's server (process {pid})"));
    }
    let number = address.port();
    let fix = match error.kind() {
        ErrorKind::AddrInUse => {
            format!(
                "ss -lntup 'sport = :{number}'   says by what; or fanfare start {flag} {}:0",
                address.ip()
            )
        }
        ErrorKind::PermissionDenied => format!("fanfare start {flag} {}:{}", address.ip(), number.max(1024)),
        _ => "ip -brief address   lists the addresses this machine has".to_owned(),
    };
    finding(format!("{address}: {error}")).failed(Code::DOCTOR_PORT, fix)
}

fn certificate(configuration: &Configuration, listen_is_default: bool) -> Finding {
    let check = DoctorCheck::Certificate;
    let ok = |detail: String| Finding::ok(check, "certificate", detail);
    let now_s = clock::now_ms() / 1000;
    if let Some((chain, key)) = &configuration.tls {
        return match of_files(chain, key) {
            Err(why) => ok(why).failed(
                Code::DOCTOR_CERTIFICATE,
                "fanfare config show --origin   (tls.certificate, tls.key)",
            ),
            Ok((from_s, until_s)) => graded(chain, from_s, until_s, now_s),
        };
    }
    let dev = AdminFile::read(&configuration.folder).is_some_and(|file| file.dev);
    if configuration.listen.ip().is_loopback() || dev {
        return self_signed(&configuration.folder, now_s);
    }
    if configuration.plain == Plain::Always {
        return ok("none: somebody else terminates TLS (gateway.plain = \"always\")".to_owned());
    }
    let finding = ok(format!("none, and {} can be reached from elsewhere", configuration.listen));
    let fix = "fanfare start --dev   for this machine alone; for others set tls.certificate and tls.key";
    // Nothing was said about the address: --dev, which most begin with, needs no certificate.
    if listen_is_default {
        finding.warning(Code::DOCTOR_CERTIFICATE, fix)
    } else {
        finding.failed(Code::DOCTOR_CERTIFICATE, fix)
    }
}

fn graded(chain: &Path, from_s: u64, until_s: u64, now_s: u64) -> Finding {
    let ok = |detail: String| Finding::ok(DoctorCheck::Certificate, "certificate", detail);
    let shown = chain.display();
    let until = clock::rfc3339(until_s * 1000);
    let renew = format!("renew it, then check: openssl x509 -noout -dates -in {shown}");
    if until_s <= now_s {
        let ago = clock::span(now_s - until_s);
        return ok(format!("{shown} ended {ago} ago ({until})")).failed(Code::DOCTOR_CERTIFICATE, renew);
    }
    if from_s > now_s {
        let ahead = clock::span(from_s - now_s);
        return ok(format!("{shown} begins in {ahead}")).failed(Code::DOCTOR_CERTIFICATE, renew);
    }
    let finding = ok(format!("{shown}, {} left ({until})", clock::span(until_s - now_s)));
    if until_s - now_s < CERTIFICATE_LEFT_MIN_S {
        return finding.warning(Code::DOCTOR_CERTIFICATE, renew);
    }
    finding
}

fn self_signed(folder: &Path, now_s: u64) -> Finding {
    let ok = |detail: String| Finding::ok(DoctorCheck::Certificate, "certificate", detail);
    let kept = std::fs::read(folder.join(certificate::FILE)).ok();
    let kept = kept.and_then(|bytes| serde_json::from_slice::<SelfSigned>(&bytes).ok());
    match kept {
        None => ok("self-signed for loopback: a start makes it".to_owned()),
        Some(kept) if kept.not_after_unix_s > now_s => {
            let left = clock::span(kept.not_after_unix_s - now_s);
            ok(format!("self-signed for loopback, {left} left; a start renews it"))
        }
        Some(_) => ok("self-signed for loopback, over".to_owned())
            .warning(Code::DOCTOR_CERTIFICATE, "stop the server and start it again: that renews it"),
    }
}

/// From when until when the certificate is valid, Unix seconds, where its key fits it.
fn of_files(chain: &Path, key: &Path) -> Result<(u64, u64), String> {
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|error| format!("{}: {error}", chain.display()))?;
    let leaf = certificates.first().ok_or_else(|| format!("{} holds no certificate", chain.display()))?;
    let validity = x509::validity(leaf).ok_or_else(|| format!("{} does not decode", chain.display()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    rustls::sign::CertifiedKey::from_der(certificates, private, &provider)
        .map_err(|error| format!("{} and {}: {error}", chain.display(), key.display()))?;
    Ok(validity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_files_are_graded_by_what_is_left() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let now = clock::now_ms();
        let made = SelfSigned::make(now).expect("a certificate");
        let other = SelfSigned::make(now).expect("a certificate");
        let (chain, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        std::fs::write(&chain, &made.certificate).expect("written");
        std::fs::write(&key, &made.key).expect("written");
        let (from_s, until_s) = of_files(&chain, &key).expect("readable");
        assert_eq!(until_s, made.not_after_unix_s);
        let grade = |now_s| graded(&chain, from_s, until_s, now_s).grade;
        assert_eq!(grade(until_s), Grade::Failed);
        assert_eq!(grade(from_s - 1), Grade::Failed);
        assert_eq!(grade(until_s - 1), Grade::Warning);
        assert_eq!(graded(&chain, 0, until_s, until_s - CERTIFICATE_LEFT_MIN_S).grade, Grade::Ok);
        std::fs::write(&key, &other.key).expect("written");
        assert!(of_files(&chain, &key).is_err(), "a key of another certificate");
        assert!(of_files(&folder.path().join("none.pem"), &key).is_err());
        std::fs::write(&chain, "no certificate").expect("written");
        assert!(of_files(&chain, &key).is_err());
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for (address, grade) in
            [("127.0.0.1:1", None), ("[::1]:1", None), ("0.0.0.0:1", Some(Grade::Warning))]
        {
            let found = plain_http(address.parse().expect("an address"));
            assert_eq!(found.map(|finding| finding.grade), grade, "{address}");
        }
    }

    #[test]
    fn a_port_held_by_somebody_else_fails_and_by_ourselves_does_not() {
        let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = holder.local_addr().expect("bound");
        let bind = || TcpListener::bind(address).map(drop);
        let taken = port("HTTP (TCP)", "--http", address, bind(), None);
        assert_eq!((taken.grade, taken.code), (Grade::Failed, Some(Code::DOCTOR_PORT)));
        assert_eq!(port("HTTP (TCP)", "--http", address, bind(), Some(7)).grade, Grade::Ok);
        drop(holder);
        assert_eq!(port("HTTP (TCP)", "--http", address, bind(), None).grade, Grade::Ok);
    }
}
