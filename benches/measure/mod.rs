//! How the benches measure: what they are asked for, wall and CPU time, medians, and a table.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod awake;

use std::{
    process::{self, Command, Stdio},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::load::Load;

/// What the command line asks for: `[--test] [--rounds N] [NUMBER...] [CONTENDER...]`.
pub struct Options {
    /// Whether only to see that the bench works.
    pub is_test: bool,
    pub rounds: usize,
    numbers: Vec<usize>,
    contenders: Vec<String>,
}

impl Options {
    pub fn from_arguments() -> Self {
        let mut options = Options {
            is_test: false,
            rounds: 5,
            numbers: Vec::new(),
            contenders: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--test" => (options.is_test, options.rounds) = (true, 1),
                "--rounds" => {
                    let rounds = arguments.next().and_then(|rounds| rounds.parse().ok());
                    options.rounds = rounds.expect("a number of rounds");
                }
                // From cargo, to every bench.
                "--bench" => {}
                other => match other.parse() {
                    Ok(number) => options.numbers.push(number),
                    Err(_) => options.contenders.push(argument),
                },
            }
        }
        options
    }

    /// Returns the `place`th number that was given, or else all of them.
    pub fn choose(&self, place: usize, all: &[usize]) -> Vec<usize> {
        self.numbers
            .get(place)
            .map_or_else(|| all.to_vec(), |&chosen| vec![chosen])
    }

    pub fn wants(&self, contender: &str) -> bool {
        self.contenders.is_empty() || self.contenders.iter().any(|name| name == contender)
    }

    /// Makes `count` small when it only matters that the bench works.
    pub fn scale(&self, count: u64) -> u64 {
        if self.is_test {
            (count / 200).max(50)
        } else {
            count
        }
    }
}

/// One of those that are compared, and how it is measured at a task `T`.
pub struct Contender<T, S = Sample> {
    pub name: &'static str,
    pub measure: fn(T, &Load) -> S,
}

/// Has the contenders that are wanted take turns, and returns the median of each.
pub fn take_turns<T: Copy>(
    options: &Options,
    contenders: &[Contender<T>],
    task: T,
    load: &Load,
) -> Medians {
    let samples = sample_in_turns(options, contenders, task, load);
    let medians = samples.iter();
    Medians(
        medians
            .map(|(name, samples)| (*name, Sample::median(samples)))
            .collect(),
    )
}

/// The first argument of a process that is to measure one round.
const ROUND: &str = "round";

/// As [`take_turns`], each round in a process of its own: none finds the heap that another has left. `describe`
/// writes the task as arguments, for [`is_round`].
pub fn take_turns_apart<T: Copy>(
    options: &Options,
    contenders: &[Contender<T>],
    task: T,
    load: &Load,
    describe: impl Fn(T) -> Vec<String>,
) -> Medians {
    let wanted = contenders.iter().filter(|one| options.wants(one.name));
    let mut samples: Vec<_> = wanted.map(|one| (one.name, Vec::new())).collect();
    for _ in 0..options.rounds {
        for (contender, samples) in &mut samples {
            let bench = std::env::current_exe().expect("this executable");
            let round = Command::new(bench)
                .args([ROUND, contender, &load.port().to_string()])
                .args(describe(task))
                .stderr(Stdio::inherit())
                .output()
                .expect("starts a round");
            assert!(round.status.success(), "{contender}: {}", round.status);
            let said = String::from_utf8(round.stdout).expect("text");
            let nanoseconds = said.split_whitespace().map(|part| part.parse());
            let mut times = nanoseconds.map(|nanoseconds| {
                let nanoseconds: u64 = nanoseconds.expect("a number");
                Duration::from_nanos(nanoseconds)
            });
            let mut next = || times.next().expect("a time");
            samples.push(Sample {
                wall: next(),
                cpu: next(),
                latency: times.next(),
            });
        }
    }
    let medians = samples.iter();
    Medians(
        medians
            .map(|(name, samples)| (*name, Sample::median(samples)))
            .collect(),
    )
}

/// Whether this process is to measure one round; if so, it has. `read` makes the task of its arguments.
pub fn is_round<T>(contenders: &[Contender<T>], read: impl Fn(&[String]) -> T) -> bool {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [first, contender, port, task @ ..] = &arguments[..] else {
        return false;
    };
    if first != ROUND {
        return false;
    }
    let mut contenders = contenders.iter();
    let contender = contenders.find(|one| one.name == contender);
    pin(1);
    let load = Load::at(port.parse().expect("a port"));
    let sample = (contender.expect("a contender").measure)(read(task), &load);
    let times = [Some(sample.wall), Some(sample.cpu), sample.latency];
    for time in times.into_iter().flatten() {
        println!("{}", time.as_nanos());
    }
    true
}

/// Has the contenders that are wanted take turns, so that what else the machine does hits all alike, and
/// returns the samples of each.
pub fn sample_in_turns<T: Copy, S>(
    options: &Options,
    contenders: &[Contender<T, S>],
    task: T,
    load: &Load,
) -> Vec<(&'static str, Vec<S>)> {
    let wanted = contenders.iter().filter(|one| options.wants(one.name));
    let mut samples: Vec<_> = wanted.map(|contender| (contender, Vec::new())).collect();
    for _ in 0..options.rounds {
        for (contender, samples) in &mut samples {
            samples.push((contender.measure)(task, load));
        }
    }
    let samples = samples.into_iter();
    samples
        .map(|(contender, samples)| (contender.name, samples))
        .collect()
}

/// The median of each contender.
pub struct Medians(Vec<(&'static str, Sample)>);

impl Medians {
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Sample)> {
        self.0.iter().copied()
    }

    /// Returns that of a contender, if it took part.
    pub fn of(&self, contender: &str) -> Option<Sample> {
        self.iter()
            .find_map(|(name, sample)| (name == contender).then_some(sample))
    }
}

/// Ends this process if what is measured takes longer than that, while this is kept. A timeout around what is measured
/// would be polled each time, and measured too.
pub struct Patience(JoinHandle<()>);

impl Patience {
    pub fn start(limit: Duration) -> Self {
        Patience(tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            eprintln!("not over after {limit:?}");
            process::exit(1);
        }))
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What something took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall: Duration,
    /// Of all threads of this process, in user and kernel.
    pub cpu: Duration,
    /// The median time of one of many, where one comes after the other.
    pub latency: Option<Duration>,
}

/// Measures from its making on.
pub struct Stopwatch {
    begun: Instant,
    cpu: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Stopwatch {
            cpu: cpu_time(),
            begun: Instant::now(),
        }
    }

    pub fn stop(self) -> Sample {
        Sample {
            wall: self.begun.elapsed(),
            cpu: cpu_time() - self.cpu,
            latency: None,
        }
    }
}

impl Sample {
    /// Takes the median of each part by itself.
    pub fn median(samples: &[Sample]) -> Sample {
        Sample {
            wall: median(samples.iter().map(|sample| sample.wall)),
            cpu: median(samples.iter().map(|sample| sample.cpu)),
            latency: samples[0]
                .latency
                .map(|_| median(samples.iter().filter_map(|sample| sample.latency))),
        }
    }

    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.wall.as_secs_f64()
    }

    /// Shows how much of the time the core worked. Where it is little, the load or the machine was too
    /// slow, and the rate is not that of the contender.
    pub fn busy(&self) -> String {
        let share = self.cpu.as_secs_f64() / self.wall.as_secs_f64();
        format!("{:.0}%", share * 100.0)
    }

    pub fn cpu_each(&self, count: u64) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count as f64
    }
}

pub fn median(durations: impl Iterator<Item = Duration>) -> Duration {
    let mut sorted: Vec<_> = durations.collect();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Returns the value below which so many of a hundred are; `None` if there are none.
pub fn percentile(percent: usize, durations: &[Duration]) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied()
}

/// How much time this process has had of all cores, in user and kernel.
#[cfg(unix)]
pub fn cpu_time() -> Duration {
    read_clock(rustix::time::ClockId::ProcessCPUTime)
}

/// The time on a clock that all processes of this machine share, so that one can say when it wrote
/// something, and another how long ago that was.
#[cfg(unix)]
pub fn shared_time() -> Duration {
    read_clock(rustix::time::ClockId::Monotonic)
}

#[cfg(unix)]
fn read_clock(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
pub fn cpu_time() -> Duration {
    Duration::ZERO
}

#[cfg(not(unix))]
pub fn shared_time() -> Duration {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.expect("a time after 1970")
}

/// Keeps this thread, and those it starts, on one core of those it may use: the load on one, what is
/// measured on another, so that neither takes the other's time and the scheduler moves neither.
#[cfg(target_os = "linux")]
pub fn pin(place: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    let allowed = sched_getaffinity(None).expect("the cores of this thread");
    let cores: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|&core| allowed.is_set(core))
        .collect();
    if cores.len() < 2 {
        return;
    }
    let mut chosen = CpuSet::new();
    chosen.set(cores[place]);
    sched_setaffinity(None, &chosen).expect("a core that was allowed");
}

#[cfg(not(target_os = "linux"))]
pub fn pin(_: usize) {}

/// Prints rows below their headings, the columns as wide as they have to be.
pub fn print_table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].len());
        cells
            .chain([headings[column].len()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:>width$}"))
            .collect();
        println!("{}", padded.join("  "));
    };
    println!();
    print(&mut headings.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// Shows a rate: thousands, which is as exact as it is.
pub fn thousands(rate: f64) -> String {
    format!("{:.1}k", rate / 1e3)
}

/// Shows microseconds.
pub fn micros(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1e6)
}

/// Shows microseconds for each of so many.
pub fn micros_each(duration: Duration, count: u64) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e6 / count as f64)
}

/// Shows how many times `other` it is.
pub fn ratio(one: f64, other: Option<f64>) -> String {
    other.map_or_else(|| "-".to_owned(), |other| format!("{:.2}", one / other))
}
