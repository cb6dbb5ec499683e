//! What all measurements' reports share: the verdict and why, and how they are written.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use super::ledger::Deliveries;
use crate::report::Verdict;

/// What every measurement takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Over what sessions connect.
    #[arg(long, value_enum, default_value = "ws")]
    pub transport: super::server::Transport,
    /// How often each size is measured; figures are medians with their minimum and maximum.
    #[arg(long, value_parser = repeats)]
    pub repeats: Option<usize>,
    /// Write the report as JSON to this file (`-`: standard output, and nothing else there).
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Keep the scratch data of the server.
    #[arg(long)]
    pub keep: bool,
}

fn repeats(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(repeats @ 1..=100) => Ok(repeats),
        _ => Err("a number from 1 to 100".into()),
    }
}

/// The outcome, at the front of every report.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What the run proves.
    pub verdict: Verdict,
    /// Why it is not PASS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// What was counted.
    pub deliveries: Deliveries,
    /// The command that repeats it.
    pub repeat: String,
}

impl Outcome {
    /// BROKEN where a delivery was not as promised, INVALID where a limiter spoke, a session fell behind, or there is another reason why nothing is
    /// proved, else PASS.
    pub fn of(deliveries: Deliveries, limited: u64, behind: u64, mut reasons: Vec<String>) -> Self {
        if behind > 0 {
            reasons.push(format!("sessions read too slowly: {behind} GAPs in the place of deliveries"));
        }
        let mut verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Invalid };
        if limited > 0 {
            reasons.push(format!("a limiter spoke {limited} times"));
            verdict = Verdict::Invalid;
        }
        if !deliveries.are_sound() {
            reasons.push("a promise was broken".into());
            verdict = Verdict::Broken;
        }
        let repeat = std::env::args().collect::<Vec<_>>().join(" ");
        Self { verdict, reasons, deliveries, repeat }
    }

    /// Its lines for people.
    pub fn print(&self) {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Broken => "BROKEN",
            Verdict::Invalid => "INVALID",
        };
        let Deliveries { checked, lost, duplicated, reordered, altered, .. } = &self.deliveries;
        println!(
            "VERDICT  {verdict} · {checked} deliveries checked: {lost} lost, {duplicated} duplicated, {reordered} reordered, {altered} altered"
        );
        for reason in &self.reasons {
            println!("  why    {reason}");
        }
        for example in &self.deliveries.examples {
            println!("  seen   {example}");
        }
    }
}

/// A report that can be shown.
pub trait Report: Serialize {
    /// The outcome.
    fn outcome(&self) -> &Outcome;
    /// The table for people, behind the verdict.
    fn print(&self);
}

/// Shows a report and writes it where it is wanted. Gives the exit status.
pub fn hand_over(report: &impl Report, options: &Options) -> Result<u8> {
    let json = serde_json::to_string_pretty(report)?;
    let to_standard_output = options.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    if to_standard_output {
        println!("{json}");
    } else {
        report.outcome().print();
        report.print();
        println!("  repeat {}", report.outcome().repeat);
        if let Some(path) = &options.json {
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(report.outcome().verdict.exit_code())
}
