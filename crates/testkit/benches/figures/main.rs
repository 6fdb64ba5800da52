//! The figures of docs/performance.md: `cargo bench --bench figures [NAME …]`.
//!
//! The process under test runs on core 0, the load on core 1. Rates are per second of the process's own CPU time; beside
//! them the wall rate and p99. Each rate is measured beside the same calls against a bare server in the same run, which
//! does nothing but what the wire and the signature need. Medians of five rounds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    missing_docs,
    unreachable_pub,
    reason = "a benchmark stops at the first surprise"
)]

mod bare;
mod load;
mod measure;
mod polling;
mod process;

use std::time::Duration;

use measure::{Row, median};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if arguments.first().is_some_and(|a| a == "bare-server") {
        return runtime.block_on(bare::run(&arguments[1], &arguments[2]));
    }
    measure::pin_to(1);
    runtime.block_on(figures(&arguments));
}

async fn figures(wanted: &[String]) {
    let all: &[&str] = &[
        "start",
        "memory",
        "push",
        "x509-workload",
        "jwt-workload",
        "attest",
        "entries",
        "listing",
        "polling",
        "x509",
        "jwt",
        "journal",
        "explain",
    ];
    let chosen: Vec<&str> = if wanted.is_empty() { all.to_vec() } else { wanted.iter().map(String::as_str).collect() };
    println!("machine: {}; file sync: {:?} median, {:?} p99", measure::machine(), measure::sync_time().0, measure::sync_time().1);
    for name in chosen {
        match name {
            "start" => start().await,
            "memory" => memory().await,
            "push" => push().await,
            "x509-workload" => against_bare(name, 0.54, load::Kind::X509Workload).await,
            "jwt-workload" => against_bare(name, 0.31, load::Kind::JwtWorkload).await,
            "attest" => against_bare(name, 0.70, load::Kind::Attest).await,
            "entries" => entries().await,
            "listing" => listed().await,
            "polling" => polled().await,
            "x509" => {
                against_bare("x509, one a call", 0.70, load::Kind::X509 { batch: 1 }).await;
                against_bare("x509, twenty a call", 0.67, load::Kind::X509 { batch: 20 }).await;
            }
            "jwt" => against_bare(name, 0.66, load::Kind::Jwt).await,
            "journal" => journal().await,
            "explain" => explain().await,
            other => panic!("no figure `{other}`; there are {all:?}"),
        }
    }
}

/// Ours and the bare server in turn, five rounds each.
async fn against_bare(name: &str, reach: f64, kind: load::Kind) {
    let ours = process::Product::start(kind).await;
    let bare = process::Bare::start().await;
    let (mut our_rows, mut bare_rows): (Vec<Row>, Vec<Row>) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        our_rows.push(load::run(kind, &ours.target(kind), ours.pid(kind)).await);
        bare_rows.push(load::run(kind, &bare.target(kind), bare.pid()).await);
    }
    let rate = |rows: &[Row], f: fn(&Row) -> f64| median(rows.iter().map(f).collect());
    let ratio = median(our_rows.iter().zip(&bare_rows).map(|(o, b)| o.per_cpu_second() / b.per_cpu_second()).collect());
    println!(
        "{name}: {:.0} /s of CPU, bare {:.0} /s, ratio {:.0} % (reach {:.0} %); wall {:.0} /s, p99 {:.2} ms",
        rate(&our_rows, Row::per_cpu_second),
        rate(&bare_rows, Row::per_cpu_second),
        ratio * 100.0,
        reach * 100.0,
        rate(&our_rows, Row::per_second),
        rate(&our_rows, |r| r.p99.as_secs_f64() * 1000.0),
    );
}

async fn start() {
    let mut ups = Vec::new();
    for _ in 0..5 {
        ups.push(process::up_millis());
    }
    println!("up, command to first SVID: {:.0} ms (reach 1000)", median(ups));
    let (mut servers, mut agents) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let product = process::Product::start(load::Kind::X509Workload).await;
        servers.push(product.server_start.as_secs_f64() * 1000.0);
        agents.push(product.agent_start.as_secs_f64() * 1000.0);
    }
    println!("server start to healthy: {:.0} ms (reach 60); agent start to serving: {:.0} ms (reach 60)", median(servers), median(agents));
}

async fn memory() {
    let product = process::Product::start(load::Kind::X509Workload).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (server, agent) = (measure::resident(product.server_pid()), measure::resident(product.agent_pid()));
    println!("resident: server empty {server:.1} MiB (reach 20); agent idle {agent:.1} MiB (reach 15)");
    let held = load::hold_streams(&product.target(load::Kind::X509Workload), 1000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let with_streams = measure::resident(product.agent_pid());
    println!("each held workload stream: {:.1} KiB (reach 40)", (with_streams - agent) * 1024.0 / 1000.0);
    drop(held);
    let bare = process::Bare::start().await;
    let before = measure::resident(bare.pid());
    let held = load::hold_streams(&bare.target(load::Kind::X509Workload), 1000).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("each held workload stream, bare: {:.1} KiB", (measure::resident(bare.pid()) - before) * 1024.0 / 1000.0);
    drop(held);
    load::create_entries(&product.server_socket(), 10_000, 50, 4).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("server with 10,000 entries: {:.1} MiB (reach 40)", measure::resident(product.server_pid()));
}

async fn push() {
    let product = process::Product::start(load::Kind::X509Workload).await;
    let mut times = load::push_rounds(&product, 200).await;
    times.sort();
    let (f_median, f_p99) = measure::sync_time();
    println!(
        "entry created to open stream: p50 {:.1} ms (reach 10 + 2·{:.1}), p99 {:.1} ms (reach 30 + 4·{:.1})",
        times[times.len() / 2].as_secs_f64() * 1000.0,
        f_median.as_secs_f64() * 1000.0,
        times[times.len() * 99 / 100].as_secs_f64() * 1000.0,
        f_p99.as_secs_f64() * 1000.0,
    );
}

async fn entries() {
    let (mut walls, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let product = process::Product::start(load::Kind::Attest).await;
        let before = measure::cpu(product.server_pid());
        let begun = std::time::Instant::now();
        load::create_entries(&product.server_socket(), 20_000, 50, 32).await;
        walls.push(20_000.0 / begun.elapsed().as_secs_f64());
        costs.push((measure::cpu(product.server_pid()) - before).as_secs_f64() * 1e6 / 20_000.0);
    }
    println!(
        "entries created, batches of 50, 32 callers: {:.0} /s wall (reach 10000), {:.0} µs of CPU an entry (reach 65)",
        median(walls),
        median(costs)
    );
}

async fn listed() {
    const ROWS: usize = 10_000;
    let product = process::Product::start(load::Kind::Attest).await;
    load::join_fleet(&product.target(load::Kind::Attest), ROWS).await;
    load::create_entries(&product.server_socket(), ROWS, 50, 4).await;
    for (what, arguments) in [("entry show", ["entry", "show"]), ("agent list", ["agent", "list"])] {
        for form in ["pretty", "json"] {
            let took = (0..5).map(|_| process::spire_server(&product.server_socket(), &arguments, form, ROWS).as_secs_f64()).collect();
            println!("spire-server {what} -output {form}, {ROWS} rows, the whole command: {:.2} s (reach 1)", median(took));
        }
    }
}

async fn polled() {
    let product = process::Product::start(load::Kind::Attest).await;
    let (share, calls) = polling::share(&product).await;
    println!(
        "1,000 agents of SPIRE's with 20 entries each, polling: {:.1} % of a core (reach 5), {calls} calls, {:.0} µs each; {:.1} MiB",
        share * 100.0,
        share * 30.0 * 1e6 / calls as f64,
        measure::resident(product.server_pid())
    );
}

async fn journal() {
    let (count, millis) = load::journal_question().await;
    println!("log issued over {count} records, by ID: {millis:.0} ms (reach 1000)");
}

async fn explain() {
    const ENTRIES: usize = 10_000;
    let product = process::Product::start(load::Kind::X509Workload).await;
    let mut admin = load::crowd(&product, ENTRIES).await;
    let of = |mut times: Vec<Duration>| {
        times.sort();
        let millis = |t: Duration| t.as_secs_f64() * 1000.0;
        (millis(times[times.len() / 2]), millis(times[times.len() * 99 / 100]))
    };
    let (p50, p99) = of(load::explain_rounds(&mut admin, std::process::id(), 200).await);
    println!("explain with {ENTRIES} entries, the call: p50 {p50:.1} ms, p99 {p99:.1} ms (reach 50)");
    let commands = (0..100).map(|_| process::explain_command(&product.admin_socket(), std::process::id())).collect();
    let (p50, p99) = of(commands);
    println!("the same, the whole command: p50 {p50:.1} ms, p99 {p99:.1} ms (reach 50)");
}
