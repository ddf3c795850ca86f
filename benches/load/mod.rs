//! The server that the benches talk to: a process of its own, on a core of its own, which writes frames
//! faster than any client here reads them. It knows a few methods, and how to flood.
//!
//! `bench/flood {size, sessions, events}` is answered at once. Then `events` outputs of `size` bytes
//! follow, to the processes p0, p1, … in turn. Their `seq` goes on from one flood to the next.
//!
//! `bench/mix`: see [`mix`]. `process/signal` notes how long ago the time was that the process id tells
//! behind `t-`, in nanoseconds of [`measure::shared_time`]; `bench/latencies` answers with what was noted.
//!
//! `bench/end {sessions}` is answered at once; *exited* and *closed* follow of the processes p0, p1, ….
//! `bench/drop` is not answered: the socket is dropped.
#![allow(dead_code, missing_docs, unreachable_pub)]

mod mix;

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{HashMap, VecDeque},
    io::{self, BufRead as _, BufReader, IoSlice},
    mem,
    ops::Range,
    process::{Child, Command, Stdio},
    rc::Rc,
    time::Duration,
};

use actix_http::ws::hash_key;
use base64_simd::STANDARD;
use bytes::{Buf as _, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::measure;

/// Makes a bench the load of another, as its first argument.
const ARGUMENT: &str = "load";

/// The most that is written before requests are looked for again.
const BATCH: usize = 256 << 10;

/// Chunks below this are copied behind each of their heads: cheaper than a slice of their own.
const SHARED: usize = 1024;

/// A running load, which ends when this is dropped.
pub struct Load {
    child: Option<Child>,
    port: u16,
}

impl Load {
    /// Starts this executable again, as the load.
    pub fn start() -> Self {
        let bench = std::env::current_exe().expect("this executable");
        let mut child = Command::new(bench)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts the load");
        let mut port = String::new();
        BufReader::new(child.stdout.take().expect("is piped"))
            .read_line(&mut port)
            .expect("the load says its port");
        Load {
            child: Some(child),
            port: port.trim().parse().expect("a port"),
        }
    }

    /// The one that another process has started.
    pub fn at(port: u16) -> Self {
        Load { child: None, port }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It ends with its stdin, as it does when this process is killed.
            drop(child.stdin.take());
            let _ended = child.wait();
        }
    }
}

/// Whether this process is to be the load: `main` then calls [`serve`] and nothing else.
pub fn is_wanted() -> bool {
    std::env::args()
        .nth(1)
        .is_some_and(|first| first == ARGUMENT)
}

/// Accepts connections until stdin is closed.
pub fn serve() {
    measure::pin(0);
    std::thread::spawn(|| {
        let _closed = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        println!("{}", listener.local_addr().expect("its address").port());
        let files = Files::default();
        loop {
            let (socket, _) = listener.accept().await.expect("a client");
            let files = files.clone();
            tokio::task::spawn_local(async move {
                // A client that goes in the middle is done with its measurement.
                let _gone = converse(socket, files).await;
            });
        }
    });
}

/// Results of `fs/readFile`, by the size of the file. Made once for all connections.
type Files = Rc<RefCell<HashMap<usize, Rc<[u8]>>>>;

async fn converse(mut socket: TcpStream, files: Files) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let read = upgrade(&mut socket).await?;
    let conversation = Conversation {
        socket,
        read,
        answers: Vec::new(),
        files,
        last_seqs: Vec::new(),
        floods: VecDeque::new(),
        mix: None,
        unended: 0..0,
        latencies: Vec::new(),
        heads: Vec::new(),
        head_ends: Vec::new(),
    };
    conversation.run().await
}

/// Accepts the upgrade, and returns what was read behind it.
async fn upgrade(socket: &mut TcpStream) -> io::Result<BytesMut> {
    let mut read = BytesMut::new();
    let end = loop {
        if socket.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let request = read.split_to(end);
    let request = str::from_utf8(&request).map_err(io::Error::other)?;
    let key = request
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .map(|(_, key)| hash_key(key.trim().as_bytes()))
        .ok_or_else(|| io::Error::other("no upgrade"))?;
    let key = str::from_utf8(&key).map_err(io::Error::other)?;
    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {key}\r\n\r\n"
    );
    socket.write_all(accepted.as_bytes()).await?;
    Ok(read)
}

#[derive(Deserialize)]
struct Request<'a> {
    id: Option<i64>,
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct FloodParams {
    size: usize,
    sessions: usize,
    events: u64,
}

#[derive(Deserialize)]
struct EndParams {
    sessions: usize,
}

#[derive(Deserialize)]
struct FileParams<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProcessParams<'a> {
    #[serde(borrow)]
    process_id: &'a RawValue,
}

/// Outputs that are still to be written.
struct Flood {
    /// What all of them end with: the chunk and what closes it.
    tail: Vec<u8>,
    sessions: usize,
    /// Whose turn it is.
    process: usize,
    left: u64,
}

struct Conversation {
    socket: TcpStream,
    read: BytesMut,
    answers: Vec<u8>,
    files: Files,
    /// Of each process.
    last_seqs: Vec<u64>,
    floods: VecDeque<Flood>,
    /// What is to be written next, and the id of the request for it.
    mix: Option<(String, mix::Params)>,
    /// The processes whose ends are still to be told.
    unended: Range<usize>,
    /// How long interrupts took to get here.
    latencies: Vec<Duration>,
    /// The beginnings of the frames of a batch, and where each ends.
    heads: Vec<u8>,
    head_ends: Vec<usize>,
}

impl Conversation {
    async fn run(mut self) -> io::Result<()> {
        loop {
            // Answers to all requests of one read go out in one write.
            if !self.take_requests().await? {
                return Ok(());
            }
            self.write_answers().await?;
            self.write_ends().await?;
            if let Some((id, params)) = self.mix.take() {
                self.write_mix(&id, &params).await?;
            }
            self.read.reserve(64 << 10);
            if self.floods.is_empty() {
                if self.socket.read_buf(&mut self.read).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            self.write_batch().await?;
            // The runtime looks at the socket only when no task is ready.
            tokio::task::yield_now().await;
            match self.socket.try_read_buf(&mut self.read) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Handles the requests that have been read; `false` if the client closes.
    async fn take_requests(&mut self) -> io::Result<bool> {
        let mut read = mem::take(&mut self.read);
        let mut handled = 0;
        while let Some(frame) = Frame::parse(&mut read[handled..]) {
            handled += frame.length;
            match frame.opcode {
                0x8 => return Ok(false),
                0x9 => push_frame(0xA, &[frame.payload], &mut self.answers),
                0x1 | 0x2 => {
                    if let Some(file) = self.handle(frame.payload)? {
                        self.write_answers().await?;
                        self.socket.write_all(&file).await?;
                        self.answers.push(b'}');
                    }
                }
                _ => {}
            }
        }
        read.advance(handled);
        self.read = read;
        Ok(true)
    }

    /// Answers a request. A file is not copied: it is to be written behind the answers, and a brace
    /// behind it.
    fn handle(&mut self, json: &[u8]) -> io::Result<Option<Rc<[u8]>>> {
        if let Some(id) = id_of_metadata_request(json) {
            push_answer(
                id,
                br#"{"isDirectory":true,"isFile":false,"createdAtMs":0,"modifiedAtMs":0}"#,
                &mut self.answers,
            );
            return Ok(None);
        }
        let Request { id, method, params } = serde_json::from_slice(json)?;
        let Some(id) = id else {
            return Ok(None);
        };
        let id = id.to_string();
        let params = params.map_or("{}", RawValue::get);
        let result: Cow<'_, str> = match method.as_ref() {
            "initialize" => r#"{"environmentInfo":{}}"#.into(),
            "bench/flood" => {
                self.begin_flood(&serde_json::from_str(params)?);
                "{}".into()
            }
            "bench/mix" => {
                self.mix = Some((id, serde_json::from_str(params)?));
                return Ok(None);
            }
            "bench/end" => {
                let EndParams { sessions } = serde_json::from_str(params)?;
                self.unended = 0..sessions;
                "{}".into()
            }
            "bench/drop" => return Err(io::ErrorKind::ConnectionAborted.into()),
            "bench/latencies" => {
                let latencies = mem::take(&mut self.latencies).into_iter();
                let nanoseconds: Vec<_> = latencies.map(|taken| taken.as_nanos()).collect();
                format!(r#"{{"nanoseconds":{nanoseconds:?}}}"#).into()
            }
            "process/signal" => {
                let now = measure::shared_time();
                let ProcessParams { process_id } = serde_json::from_str(params)?;
                let sent = process_id.get().trim_matches('"').strip_prefix("t-");
                let sent = sent.and_then(|sent| sent.parse().ok());
                let sent = sent.ok_or_else(|| io::Error::other("no time"))?;
                self.latencies.push(now - Duration::from_nanos(sent));
                "{}".into()
            }
            "process/start" => {
                let ProcessParams { process_id } = serde_json::from_str(params)?;
                format!(r#"{{"processId":{process_id}}}"#).into()
            }
            "process/terminate" => r#"{"running":false}"#.into(),
            "fs/getMetadata" => {
                r#"{"isDirectory":true,"isFile":false,"createdAtMs":0,"modifiedAtMs":0}"#.into()
            }
            "fs/readFile" => {
                let FileParams { path } = serde_json::from_str(params)?;
                let size = path.rsplit('/').next().and_then(|name| name.parse().ok());
                let file = self.file(size.ok_or_else(|| io::Error::other("no size"))?);
                let length = 6 + id.len() + 10 + file.len() + 1;
                push_header(0x1, length, &mut self.answers);
                self.answers.extend_from_slice(b"{\"id\":");
                self.answers.extend_from_slice(id.as_bytes());
                self.answers.extend_from_slice(b",\"result\":");
                return Ok(Some(file));
            }
            unknown => {
                // Such as a read of output that a session had no room for: then something else is
                // measured than was meant.
                eprintln!("the load was asked for {unknown}");
                let error = r#","error":{"code":-32601,"message":"unknown"}}"#.as_bytes();
                push_frame(0x1, &[b"{\"id\":", id.as_bytes(), error], &mut self.answers);
                return Ok(None);
            }
        };
        push_answer(id.as_bytes(), result.as_bytes(), &mut self.answers);
        Ok(None)
    }

    fn file(&self, size: usize) -> Rc<[u8]> {
        let encode = || {
            let data = STANDARD.encode_to_string(vec![b'x'; size]);
            format!(r#"{{"dataBase64":"{data}"}}"#).into_bytes().into()
        };
        let mut files = self.files.borrow_mut();
        files.entry(size).or_insert_with(encode).clone()
    }

    fn begin_flood(&mut self, params: &FloodParams) {
        let chunk = STANDARD.encode_to_string(vec![b'x'; params.size]);
        let sessions = params.sessions;
        if self.last_seqs.len() < sessions {
            self.last_seqs.resize(sessions, 0);
        }
        self.floods.push_back(Flood {
            tail: format!(r#"{chunk}"}}}}"#).into_bytes(),
            sessions,
            process: 0,
            left: params.events,
        });
    }

    /// Tells all ends that are to be told.
    async fn write_ends(&mut self) -> io::Result<()> {
        while !self.unended.is_empty() {
            self.heads.clear();
            while self.heads.len() < BATCH
                && let Some(process) = self.unended.next()
            {
                let (exited, closed) = match self.last_seqs.get_mut(process) {
                    Some(last) => {
                        *last += 2;
                        (*last - 1, *last)
                    }
                    None => (1, 2),
                };
                let exited = format!(
                    r#"{{"method":"process/exited","params":{{"processId":"p{process}","seq":{exited},"exitCode":0}}}}"#
                );
                let closed = format!(
                    r#"{{"method":"process/closed","params":{{"processId":"p{process}","seq":{closed}}}}}"#
                );
                push_frame(0x1, &[exited.as_bytes()], &mut self.heads);
                push_frame(0x1, &[closed.as_bytes()], &mut self.heads);
            }
            self.socket.write_all(&self.heads).await?;
        }
        Ok(())
    }

    async fn write_answers(&mut self) -> io::Result<()> {
        if !self.answers.is_empty() {
            self.socket.write_all(&self.answers).await?;
            self.answers.clear();
        }
        Ok(())
    }

    /// Writes the next outputs of the first flood.
    async fn write_batch(&mut self) -> io::Result<()> {
        let Some(flood) = self.floods.front_mut() else {
            return Ok(());
        };
        let is_shared = flood.tail.len() >= SHARED;
        self.heads.clear();
        self.head_ends.clear();
        let mut length = 0;
        while flood.left > 0 && length < BATCH {
            let seq = &mut self.last_seqs[flood.process];
            *seq += 1;
            push_head(flood.process, *seq, flood.tail.len(), &mut self.heads);
            if is_shared {
                self.head_ends.push(self.heads.len());
                length = self.heads.len() + self.head_ends.len() * flood.tail.len();
            } else {
                self.heads.extend_from_slice(&flood.tail);
                length = self.heads.len();
            }
            flood.left -= 1;
            flood.process = (flood.process + 1) % flood.sessions;
        }
        if is_shared {
            let mut begin = 0;
            let mut slices = Vec::with_capacity(2 * self.head_ends.len());
            for &end in &self.head_ends {
                slices.push(IoSlice::new(&self.heads[begin..end]));
                slices.push(IoSlice::new(&flood.tail));
                begin = end;
            }
            write_all_slices(&mut self.socket, &mut slices).await?;
        } else {
            self.socket.write_all(&self.heads).await?;
        }
        if flood.left == 0 {
            self.floods.pop_front();
        }
        Ok(())
    }
}

async fn write_all_slices(
    socket: &mut TcpStream,
    mut slices: &mut [IoSlice<'_>],
) -> io::Result<()> {
    while !slices.is_empty() {
        let written = socket.write_vectored(slices).await?;
        IoSlice::advance_slices(&mut slices, written);
    }
    Ok(())
}

/// A frame of a client, unmasked in its place.
struct Frame<'a> {
    opcode: u8,
    payload: &'a [u8],
    /// Of all of it.
    length: usize,
}

impl<'a> Frame<'a> {
    fn parse(bytes: &'a mut [u8]) -> Option<Self> {
        let &[first, second] = bytes.first_chunk()?;
        let (header, length) = match second & 0x7F {
            126 => (
                4,
                usize::from(u16::from_be_bytes(*bytes[2..].first_chunk()?)),
            ),
            127 => (10, u64::from_be_bytes(*bytes[2..].first_chunk()?) as usize),
            short => (2, usize::from(short)),
        };
        let mask = *bytes.get(header..)?.first_chunk::<4>()?;
        let payload = bytes.get_mut(header + 4..header + 4 + length)?;
        let (words, rest) = payload.as_chunks_mut();
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(mask) {
            *byte ^= mask;
        }
        Some(Frame {
            opcode: first & 0xF,
            payload,
            length: header + 4 + length,
        })
    }
}

/// Finds the id of the request that the benches make most, without parsing the rest.
fn id_of_metadata_request(json: &[u8]) -> Option<&[u8]> {
    let rest = json.strip_prefix(b"{\"id\":")?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    let (id, rest) = rest.split_at(digits);
    rest.starts_with(br#","method":"fs/getMetadata""#)
        .then_some(id)
}

/// Appends an output up to where its chunk begins.
fn push_head(process: usize, seq: u64, tail: usize, frames: &mut Vec<u8>) {
    const BEFORE_PROCESS: &[u8] = br#"{"method":"process/output","params":{"processId":"p"#;
    const BEFORE_SEQ: &[u8] = br#"","seq":"#;
    const BEFORE_CHUNK: &[u8] = br#","stream":"stdout","chunk":""#;
    let (mut process_digits, mut seq_digits) = ([0; 20], [0; 20]);
    let process = decimal(process as u64, &mut process_digits);
    let seq = decimal(seq, &mut seq_digits);
    let fixed = BEFORE_PROCESS.len() + BEFORE_SEQ.len() + BEFORE_CHUNK.len();
    push_header(0x1, fixed + process.len() + seq.len() + tail, frames);
    for part in [BEFORE_PROCESS, process, BEFORE_SEQ, seq, BEFORE_CHUNK] {
        frames.extend_from_slice(part);
    }
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut begin = digits.len();
    loop {
        begin -= 1;
        digits[begin] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[begin..];
        }
    }
}

fn push_answer(id: &[u8], result: &[u8], frames: &mut Vec<u8>) {
    push_frame(
        0x1,
        &[b"{\"id\":", id, b",\"result\":", result, b"}"],
        frames,
    );
}

fn push_frame(opcode: u8, parts: &[&[u8]], frames: &mut Vec<u8>) {
    push_header(opcode, parts.iter().map(|part| part.len()).sum(), frames);
    for part in parts {
        frames.extend_from_slice(part);
    }
}

fn push_header(opcode: u8, length: usize, frames: &mut Vec<u8>) {
    frames.push(0x80 | opcode);
    match length {
        0..=125 => frames.push(length as u8),
        126..=0xFFFF => {
            frames.push(126);
            frames.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            frames.push(127);
            frames.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}
