//! The server under measurement: on its own core, with scratch data, reached by one transport.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use fanfare_client::{
    connection::ConnectOptions,
    target::{Carrier, Discovery, Target},
    tls::Trust,
};
use serde::Serialize;

use super::{accounting::CpuTimes, machine::Cores, udp};
use crate::{
    admin::Admin,
    server_process::{AdminFile, ServerProcess},
};

/// Over what all sessions connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// WebSocket over plain TCP.
    Ws,
    /// WebSocket over TLS 1.3.
    Wss,
    /// QUIC, all sessions over four UDP sockets.
    Quic,
}

/// See the module's page.
pub struct Server {
    process: ServerProcess,
    cores: Cores,
    transport: Transport,
    /// Its HTTP side.
    pub admin: Admin,
    /// How sessions connect; they take turns.
    pub targets: Vec<ConnectOptions>,
    trust: Trust,
    pid: u32,
}

impl Server {
    /// Starts one on fresh data below `folder`.
    pub async fn start(folder: &Path, cores: &Cores, transport: Transport) -> Result<Self> {
        Self::start_with(folder, cores, transport, false).await
    }

    /// As [`Self::start`], where `power_cut` under a library that can take back what was not synced.
    pub async fn start_with(
        folder: &Path,
        cores: &Cores,
        transport: Transport,
        power_cut: bool,
    ) -> Result<Self> {
        let mut process = ServerProcess::prepare(folder, power_cut)?;
        let (admin, (targets, trust), pid) = launch(&mut process, cores, transport).await?;
        Ok(Self { process, cores: cores.clone(), transport, admin, targets, trust, pid })
    }

    /// Ends it in order, with everything flushed, and starts it again on the same data.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.stop()?;
        (self.admin, (self.targets, self.trust), self.pid) =
            launch(&mut self.process, &self.cores, self.transport).await?;
        Ok(())
    }

    /// Kills it, takes back what it had not synced where that is torn by a `seed`, and starts it again on the same data and ports.
    pub async fn kill(&mut self, power_cut: Option<u64>) -> Result<()> {
        self.process.kill()?;
        if let Some(seed) = power_cut {
            let mode = ["lost", "torn", "mixed"][(seed % 3) as usize];
            self.process.cut_power(seed, mode)?;
        }
        (self.admin, (self.targets, self.trust), self.pid) =
            launch(&mut self.process, &self.cores, self.transport).await?;
        Ok(())
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop()
    }

    /// How one more session connects that has nothing of an earlier TLS session: a whole handshake.
    pub fn stranger(&self, number: usize) -> Result<ConnectOptions> {
        let target = self.targets.get(number % self.targets.len()).context("there is a way to connect")?;
        Ok(target.clone().trust(&self.trust)?)
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// What its threads have spent so far.
    pub fn cpu(&self) -> Result<CpuTimes> {
        CpuTimes::of(self.pid)
    }
}

async fn launch(
    process: &mut ServerProcess,
    cores: &Cores,
    transport: Transport,
) -> Result<(Admin, (Vec<ConnectOptions>, Trust), u32)> {
    let file = cores.as_server(|| process.start())?;
    let pid = process.pid().context("the server runs")?;
    Ok((Admin::new(&file)?, targets(&file, transport).await?, pid))
}

async fn targets(admin: &AdminFile, transport: Transport) -> Result<(Vec<ConnectOptions>, Trust)> {
    let address = admin.address.trim_start_matches("http://").trim_end_matches('/');
    let discovery = Discovery::fetch(&format!("http://{address}")).await?;
    let gateway = discovery.gateways.first().context("the server names no gateway")?;
    let trust = discovery.pins()?.unwrap_or(Trust::Nobody);
    let target =
        |carrier| ConnectOptions::to(Target { host: gateway.host.clone(), port: gateway.port, carrier });
    let targets = match transport {
        Transport::Ws => vec![target(Carrier::WebSocket)],
        Transport::Wss => vec![target(Carrier::WebSocketTls).trust(&trust)?],
        Transport::Quic => {
            let mut targets = Vec::new();
            for endpoint in udp::endpoints()? {
                targets.push(target(Carrier::Quic).trust(&trust)?.endpoint(endpoint));
            }
            targets
        }
    };
    Ok((targets, trust))
}
