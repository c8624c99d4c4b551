//! Requests made from the .proto files: well-meant ones of what is there, and hostile ones.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Result;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, MethodDescriptorProto};
use proto::csi::v1 as csi;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

const FILES: [&str; 6] = [
    "csi/v1/csi.proto",
    "opensail/hub/v1/hub.proto",
    "opensail/node/v1/node.proto",
    "opensail/node/v1/groups.proto",
    "opensail/node/v1/settings.proto",
    "opensail/files/v1/files.proto",
];

/// Messages in messages go no deeper.
const DEEPEST: u32 = 5;

/// What maps hold where somebody means well.
const PAIRS: [(&str, &str, &str); 9] = [
    ("parameters", "mobility", "floating"),
    ("parameters", "mobility", "pinned"),
    ("mutable_parameters", "compression", "zstd"),
    ("mutable_parameters", "syncInterval", "5m"),
    ("attributes", "note", "one"),
    ("attributes", "note", "two"),
    ("expected", "note", "one"),
    ("publish_context", "epoch", "1"),
    ("secrets", "token", "a secret"),
];

/// What most callers leave out.
const RARE: [&str; 7] = [
    "accessibility_requirements",
    "volume_content_source",
    "accessible_topology",
    "budget_cpu_millis",
    "budget_memory_bytes",
    "if_match",
    "version",
];

/// What is there, for requests that mean well.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) volumes: Vec<String>,
    pub(crate) snapshots: Vec<String>,
    pub(crate) groups: Vec<String>,
    /// Where volumes may be published.
    pub(crate) targets: PathBuf,
    /// What hostile paths lead to.
    pub(crate) canaries: Vec<PathBuf>,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) frames: Vec<Vec<u8>>,
    /// It is no message of its type.
    pub(crate) broken: bool,
    /// For people.
    pub(crate) shown: String,
}

/// The calls and messages of the .proto files.
#[derive(Debug)]
pub(crate) struct Frames {
    services: HashMap<String, Vec<MethodDescriptorProto>>,
    messages: HashMap<String, DescriptorProto>,
}

impl Frames {
    /// Reads the .proto files.
    pub(crate) fn compile() -> Result<Self> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto");
        let mut frames = Self { services: HashMap::new(), messages: HashMap::new() };
        for file in protox::compile(FILES, [root])?.file {
            let package = format!(".{}", file.package());
            for service in &file.service {
                frames
                    .services
                    .insert(format!("{}.{}", file.package(), service.name()), service.method.clone());
            }
            for message in file.message_type {
                frames.add(&package, message);
            }
        }
        Ok(frames)
    }

    fn add(&mut self, above: &str, message: DescriptorProto) {
        let name = format!("{above}.{}", message.name());
        for inner in message.nested_type.clone() {
            self.add(&name, inner);
        }
        self.messages.insert(name, message);
    }

    /// The calls of a service.
    pub(crate) fn methods(&self, service: &str) -> Vec<Method> {
        let methods = self.services.get(service).cloned().unwrap_or_default();
        methods
            .into_iter()
            .map(|method| Method {
                name: method.name().to_owned(),
                input: method.input_type().to_owned(),
                streams: method.client_streaming(),
            })
            .collect()
    }

    /// Makes a request of the call.
    pub(crate) fn request(&self, method: &Method, known: &Known, seed: u64) -> Sent {
        let mut rng = StdRng::seed_from_u64(seed);
        // Half of them mean well, a quarter is a little off, a quarter is a mess.
        let hostile = *[0.0, 0.0, 0.15, 0.6].choose(&mut rng).expect("four");
        let mut maker =
            Maker { frames: self, known, rng, hostile, streamed: 0, broken: false, shown: String::new() };
        let count = if method.streams { maker.rng.random_range(0..4) } else { 1 };
        let mut frames = Vec::new();
        for _ in 0..count {
            frames.push(maker.message(&method.input, 0));
            maker.streamed += 1;
        }
        if hostile > 0.5 && maker.rng.random_bool(0.15) {
            maker.mangle(&mut frames);
        }
        Sent { frames, broken: maker.broken, shown: maker.shown.chars().take(600).collect() }
    }
}

/// A call.
#[derive(Debug, Clone)]
pub(crate) struct Method {
    pub(crate) name: String,
    input: String,
    streams: bool,
}

struct Maker<'a> {
    frames: &'a Frames,
    known: &'a Known,
    rng: StdRng,
    /// How likely a value is one that nobody should send.
    hostile: f64,
    /// Messages of the stream so far.
    streamed: usize,
    broken: bool,
    shown: String,
}

impl Maker<'_> {
    fn message(&mut self, name: &str, depth: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(message) = self.frames.messages.get(name) else { return bytes };
        // Of a choice one is taken: who means well sends no two, asks for a mount, and begins a stream as it is to begin.
        let choices = message.oneof_decl.iter().enumerate().map(|(oneof, choice)| {
            let of_it = |field: &FieldDescriptorProto| {
                field.oneof_index.and_then(|i| usize::try_from(i).ok()) == Some(oneof)
            };
            let members: Vec<usize> = message
                .field
                .iter()
                .enumerate()
                .filter(|(_, field)| of_it(field))
                .map(|(at, _)| at)
                .collect();
            match choice.name() {
                "access_type" if self.hostile == 0.0 => members.last().copied(),
                "part" if self.hostile == 0.0 => members.get(usize::from(self.streamed > 0)).copied(),
                _ => members.choose(&mut self.rng).copied(),
            }
        });
        let chosen: Vec<Option<usize>> = choices.collect();
        for (at, field) in message.field.iter().enumerate() {
            let member = field.oneof_index.and_then(|oneof| usize::try_from(oneof).ok());
            let left_out = match member {
                Some(oneof) if !field.proto3_optional() => {
                    chosen[oneof] != Some(at) && !self.rng.random_bool(self.hostile * 0.3)
                }
                _ if RARE.contains(&field.name()) => self.rng.random_bool(0.75),
                _ => self.rng.random_bool(0.03 + self.hostile * 0.5),
            };
            if left_out || depth >= DEEPEST {
                continue;
            }
            let count = match field.label() {
                Label::Repeated if self.hostile == 0.0 && self.is_map(field) => 0,
                Label::Repeated if self.hostile > 0.5 => self.rng.random_range(0..5),
                Label::Repeated => 1,
                Label::Optional | Label::Required => 1,
            };
            for _ in 0..count {
                self.field(field, depth, &mut bytes);
            }
            let entries = PAIRS.iter().filter(|(name, ..)| *name == field.name()).collect::<Vec<_>>();
            if let Some((_, key, value)) = entries.choose(&mut self.rng) {
                let mut entry = Vec::new();
                delimited(1, key.as_bytes(), &mut entry);
                delimited(2, value.as_bytes(), &mut entry);
                delimited(u64::try_from(field.number()).unwrap_or(1), &entry, &mut bytes);
            }
        }
        bytes
    }

    fn is_map(&self, field: &FieldDescriptorProto) -> bool {
        let entry = self.frames.messages.get(field.type_name());
        entry.and_then(|entry| entry.options.as_ref()).is_some_and(prost_types::MessageOptions::map_entry)
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: u32, bytes: &mut Vec<u8>) {
        let number = u64::try_from(field.number()).unwrap_or(1);
        let name = field.name().to_owned();
        match field.r#type() {
            Type::Message | Type::Group => {
                self.shown.push_str(&format!("{name}{{"));
                let inner = self.message(field.type_name(), depth + 1);
                self.shown.push('}');
                delimited(number, &inner, bytes);
            }
            Type::String => {
                let text = self.text(&name);
                self.show(&name, &text);
                self.broken |= std::str::from_utf8(&text).is_err();
                delimited(number, &text, bytes);
            }
            Type::Bytes => {
                let text = if name == "path" || name == "from" || name == "to" {
                    self.inner_path()
                } else {
                    self.text(&name)
                };
                self.show(&name, &text);
                delimited(number, &text, bytes);
            }
            Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                varint(number << 3 | 1, bytes);
                bytes.extend(self.rng.random::<u64>().to_le_bytes());
            }
            Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                varint(number << 3 | 5, bytes);
                bytes.extend(self.rng.random::<u32>().to_le_bytes());
            }
            Type::Int64
            | Type::Uint64
            | Type::Int32
            | Type::Uint32
            | Type::Bool
            | Type::Enum
            | Type::Sint32
            | Type::Sint64 => {
                let value = self.number(&name);
                self.shown.push_str(&format!("{name}={value} "));
                varint(number << 3, bytes);
                varint(value.cast_unsigned(), bytes);
            }
        }
    }

    fn show(&mut self, name: &str, text: &[u8]) {
        let text: String = String::from_utf8_lossy(text).chars().take(60).collect();
        self.shown.push_str(&format!("{name}={text:?} "));
    }

    fn number(&mut self, name: &str) -> i64 {
        if self.rng.random_bool(self.hostile) {
            return *[0, 1, -1, 2, 7, 99, i64::MAX, i64::MIN, i64::from(i32::MAX), 1 << 40]
                .choose(&mut self.rng)
                .expect("some");
        }
        match name {
            "mode" => *[1, 2, 6, 7].choose(&mut self.rng).expect("some"),
            "required_bytes" | "quota_bytes" => {
                *[1 << 20, 16 << 20, 64 << 20].choose(&mut self.rng).expect("some")
            }
            "limit_bytes" => *[0, 64 << 20, 1 << 30].choose(&mut self.rng).expect("some"),
            // A minute's work is not what this looks for.
            "length" | "offset" | "size" => self.rng.random_range(0..5000),
            "kind" => self.rng.random_range(0..6),
            _ => self.rng.random_range(0..3),
        }
    }

    fn text(&mut self, name: &str) -> Vec<u8> {
        let is_path = name.ends_with("_path");
        if self.rng.random_bool(self.hostile) {
            return if is_path { self.hostile_target() } else { self.hostile_text() };
        }
        let pick = |rng: &mut StdRng, some: &[String]| {
            some.choose(rng).cloned().unwrap_or_else(|| "vol-0".to_owned())
        };
        let word = |rng: &mut StdRng, some: &[&str]| (*some.choose(rng).expect("some")).to_owned();
        let rng = &mut self.rng;
        let text = match name {
            "snapshot_id" | "snapshot_ids" => pick(rng, &self.known.snapshots),
            "group_snapshot_id" => pick(rng, &self.known.groups),
            _ if name.ends_with("volume_id") || name.ends_with("volume_ids") || name == "origin" => {
                pick(rng, &self.known.volumes)
            }
            "sealed_id" => format!("snap-{}", rng.random_range(0..20)),
            "node_id" | "node" | "node_hint" | "candidates" => word(rng, &["node-1", "node-1", "node-2", ""]),
            "name" | "unique_name" | "request_id" => format!("name-{}", rng.random_range(0..12)),
            "staging_target_path" => self.known.targets.join("staging").display().to_string(),
            "target_path" | "volume_path" => {
                self.known.targets.join(format!("t-{}", rng.random_range(0..4))).display().to_string()
            }
            "starting_token" | "page_token" => word(rng, &["", "", "after:vol-5", "vol-5"]),
            "key" => word(
                rng,
                &["mobility", "compression", "syncInterval", "name", "csi.storage.k8s.io/ephemeral", "size"],
            ),
            "value" => word(rng, &["floating", "pinned", "zstd", "none", "5m", "true", "16Mi"]),
            "mount_flags" => word(rng, &["ro", "noexec"]),
            "data" => "some text".repeat(rng.random_range(0..50)),
            _ => String::new(),
        };
        text.into_bytes()
    }

    /// Paths in a volume.
    fn inner_path(&mut self) -> Vec<u8> {
        if self.rng.random_bool(self.hostile) {
            return self.hostile_text();
        }
        let path = ["a", "b", "dir/a", "dir/b", "dir", ""].choose(&mut self.rng).expect("some");
        path.as_bytes().to_vec()
    }

    /// Paths that kubelet would not send. An absolute one outside may be asked for by who holds the socket, so those here
    /// lead to where there is something to lose.
    fn hostile_target(&mut self) -> Vec<u8> {
        let canary = self.known.canaries.choose(&mut self.rng).expect("some").display().to_string();
        let targets = self.known.targets.display();
        let paths = [
            String::new(),
            "/".to_owned(),
            ".".to_owned(),
            "..".to_owned(),
            "relative/x".to_owned(),
            "../../x".to_owned(),
            format!("{canary}/file"),
            format!("{canary}/inner/data/file"),
            format!("{canary}/file/x"),
            format!("{targets}/../x"),
            format!("{targets}/t-1/../../x"),
            format!("{targets}/new\nline"),
            format!("{targets}/nul\0l"),
            format!("{targets}/{}", "x".repeat(300)),
            format!("{targets}/{}", "x/".repeat(4000)),
            "\u{202e}/\u{1f4a9}".to_owned(),
        ];
        let chosen = paths.choose(&mut self.rng).expect("some").clone();
        self.maybe_broken(chosen.into_bytes())
    }

    fn hostile_text(&mut self) -> Vec<u8> {
        let canary = self.known.canaries.choose(&mut self.rng).expect("some").display().to_string();
        let volume = self.known.volumes.first().cloned().unwrap_or_default();
        let texts = [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "/".to_owned(),
            "../../x".to_owned(),
            "../canary".to_owned(),
            "../../canary".to_owned(),
            "../../../canary/file".to_owned(),
            "../../../../../../etc/passwd".to_owned(),
            format!("{volume}/../../canary"),
            format!("{volume}/data"),
            format!("{volume}\0"),
            format!("{volume}\n"),
            format!(" {volume}"),
            format!("{volume}@{}", "0".repeat(64)),
            volume.to_uppercase(),
            canary,
            "/etc/passwd".to_owned(),
            "a\0b".to_owned(),
            "\0".to_owned(),
            "x".repeat(4096),
            "x".repeat(253),
            "é\u{0301}\u{200b}\u{202e}\u{1f4a9}".to_owned(),
            "%2e%2e%2f".to_owned(),
            "..\\..\\x".to_owned(),
            "-rf".to_owned(),
            "after:../x".to_owned(),
            "unique:volume:0:1".to_owned(),
            "csi-ephemeral".to_owned(),
            "f".repeat(64),
            "00000000000000000000000000".to_owned(),
            self.rng.random::<u64>().to_string(),
        ];
        let chosen = texts.choose(&mut self.rng).expect("some").clone();
        self.maybe_broken(chosen.into_bytes())
    }

    /// Now and then text that is none.
    fn maybe_broken(&mut self, mut text: Vec<u8>) -> Vec<u8> {
        if self.rng.random_bool(0.02) {
            text.extend([0xff, 0xfe, 0x80]);
        }
        text
    }

    /// Makes frames that need not be messages.
    fn mangle(&mut self, frames: &mut Vec<Vec<u8>>) {
        self.broken = true;
        self.shown.push_str(" (mangled)");
        match (self.rng.random_range(0..3), frames.first_mut()) {
            (0, Some(frame)) if !frame.is_empty() => frame.truncate(frame.len() / 2),
            (1, Some(frame)) if !frame.is_empty() => {
                for _ in 0..3 {
                    let at = self.rng.random_range(0..frame.len());
                    frame[at] ^= self.rng.random::<u8>();
                }
            }
            _ => {
                let length = self.rng.random_range(1..200);
                *frames = vec![(0..length).map(|_| self.rng.random()).collect()];
            }
        }
    }
}

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

fn delimited(number: u64, inner: &[u8], bytes: &mut Vec<u8>) {
    varint(number << 3 | 2, bytes);
    varint(inner.len() as u64, bytes);
    bytes.extend(inner);
}

/// A create that nothing is wrong with.
pub(crate) fn create(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
            access_type: Some(AccessType::Mount(MountVolume::default())),
        }],
        ..Default::default()
    }
}
