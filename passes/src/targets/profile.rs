//! The JSON form of targets. Its schema is `passes/src/targets/target.schema.json`; a test checks that both agree.

use super::{Cache, Device, DeviceKind, Link, Links, Loops, Node, Products, Share, Target};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use tpc_ir::mesh::is_name;
use tpc_ir::quote::cut;
use tpc_ir::unique::{self, UniqueError};

/// The JSON Schema of profiles.
pub const SCHEMA: &str = include_str!("target.schema.json");

/// A fault in the profile or the name of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The text is not JSON.
    #[error("the target is not JSON: {0}")]
    Json(String),
    /// A key occurs twice in one object.
    #[error("the target is ambiguous: {0}")]
    Repeated(UniqueError),
    /// An unknown key.
    #[error("the target has an unknown key `{}` in {place}: known are {known}", cut(.key))]
    Key {
        /// The key.
        key: String,
        /// The object that it is in.
        place: String,
        /// The keys that the object may have.
        known: String,
    },
    /// A missing key.
    #[error("the target lacks the key `{key}` in {place}, which is {meaning}")]
    Missing {
        /// The key.
        key: &'static str,
        /// The object that should have it.
        place: String,
        /// The meaning of its value.
        meaning: &'static str,
    },
    /// A value of the wrong kind.
    #[error("`{}` in the target must be {expected}, found {}", cut(.key), cut(.found))]
    Kind {
        /// The path of the value.
        key: String,
        /// The expected kind of value.
        expected: &'static str,
        /// The value that was found.
        found: String,
    },
    /// No built-in target has the name.
    #[error("there is no built-in target `{}` and no such file: built in are {known}", cut(.name))]
    BuiltIn {
        /// The name.
        name: String,
        /// The names that exist.
        known: String,
    },
}

const POSITIVE: &str = "a number above 0";

/// An object of a profile, and its path.
struct Object<'a> {
    map: &'a Map<String, Json>,
    path: String,
}

impl<'a> Object<'a> {
    fn new(json: &'a Json, path: &str) -> Result<Self, TargetError> {
        let map =
            json.as_object().ok_or_else(|| kind(if path.is_empty() { "target" } else { path }, "an object", json));
        Ok(Object { map: map?, path: path.into() })
    }

    /// Fails unless all keys of the object are among the known ones.
    fn known(self, known: &[&str]) -> Result<Self, TargetError> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(TargetError::Key { key: key.clone(), place: self.place(), known: known.join(", ") }),
            None => Ok(self),
        }
    }

    fn place(&self) -> String {
        if self.path.is_empty() { "the outermost object".into() } else { format!("`{}`", self.path) }
    }

    /// The path of the value of a key.
    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    fn value(&self, key: &'static str, meaning: &'static str) -> Result<&'a Json, TargetError> {
        self.map.get(key).ok_or_else(|| TargetError::Missing { key, place: self.place(), meaning })
    }

    fn object(&self, key: &'static str, meaning: &'static str) -> Result<Object<'a>, TargetError> {
        Object::new(self.value(key, meaning)?, &self.at(key))
    }

    fn positive(&self, key: &'static str, meaning: &'static str) -> Result<f64, TargetError> {
        positive(&self.at(key), self.value(key, meaning)?)
    }

    fn perhaps(&self, key: &'static str) -> Result<Option<f64>, TargetError> {
        self.map.get(key).map(|json| positive(&self.at(key), json)).transpose()
    }
}

fn kind(key: &str, expected: &'static str, found: &Json) -> TargetError {
    TargetError::Kind { key: key.into(), expected, found: found.to_string() }
}

fn positive(key: &str, json: &Json) -> Result<f64, TargetError> {
    json.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| kind(key, POSITIVE, json))
}

fn device(device: Object<'_>) -> Result<Device, TargetError> {
    let device = device.known(&[
        "kind",
        "products",
        "product_shares",
        "memory",
        "caches",
        "loops",
        "launch",
        "view",
        "fused_reads",
        "capacity",
    ])?;
    let named = device.value("kind", "the backend that the device stands for")?;
    let kinds = [DeviceKind::Cpu, DeviceKind::Cuda];
    let kind_of = kinds.into_iter().find(|kind| named.as_str() == Some(kind.name()));
    let products = device.object("products", "the operations per second of matrix products")?;
    let products = products.known(&["f32", "bf16", "f16", "f64"])?;
    Ok(Device {
        kind: kind_of.ok_or_else(|| kind(&device.at("kind"), "\"cpu\" or \"cuda\"", named))?,
        products: Products {
            f32: products.positive("f32", "the rate of every type that has no other")?,
            bf16: products.perhaps("bf16")?,
            f16: products.perhaps("f16")?,
            f64: products.perhaps("f64")?,
        },
        product_shares: sizes(&device, "product_shares", ["bytes", "share"])?
            .into_iter()
            .map(|[bytes, share]| Share { bytes, share })
            .collect(),
        memory: device.positive("memory", "the bytes per second of everything but products")?,
        caches: sizes(&device, "caches", ["bytes", "bandwidth"])?
            .into_iter()
            .map(|[bytes, bandwidth]| Cache { bytes, bandwidth })
            .collect(),
        loops: device.map.get("loops").map(|json| loops(Object::new(json, &device.at("loops"))?)).transpose()?,
        launch: device.positive("launch", "the seconds that starting a kernel costs")?,
        view: device.positive("view", "the share of a launch that a view costs, 0.1 in the built-in targets")?,
        fused_reads: device.positive(
            "fused_reads",
            "the share of its operands that an elementwise operation reads, 0.25 in the built-in targets",
        )?,
        capacity: device.positive("capacity", "the bytes of memory of one rank")?,
    })
}

/// The objects of a list, each a size and another number. Their sizes increase.
fn sizes(object: &Object<'_>, key: &'static str, names: [&'static str; 2]) -> Result<Vec<[f64; 2]>, TargetError> {
    let Some(json) = object.map.get(key) else { return Ok(Vec::new()) };
    let path = object.at(key);
    let list = json.as_array().ok_or_else(|| kind(&path, "a list", json))?;
    let number = |(at, json): (usize, &Json)| {
        let entry = Object::new(json, &format!("{path}.{at}"))?.known(&names)?;
        let [size, other] = names;
        Ok([entry.positive(size, "the bytes that it is about")?, entry.positive(other, "what holds for these bytes")?])
    };
    let found = list.iter().enumerate().map(number).collect::<Result<Vec<_>, TargetError>>()?;
    match found.is_sorted_by(|a, b| a[0] < b[0]) {
        true => Ok(found),
        false => Err(kind(&path, "a list with increasing bytes", json)),
    }
}

fn loops(loops: Object<'_>) -> Result<Loops, TargetError> {
    let loops = loops.known(&["arithmetic", "divisions", "functions", "copies", "dispatch"])?;
    let arithmetic = loops.positive("arithmetic", "the elements per second of an addition")?;
    let functions = loops.positive("functions", "the elements per second of an exponential")?;
    Ok(Loops {
        arithmetic,
        divisions: loops.perhaps("divisions")?.unwrap_or(functions),
        functions,
        copies: loops.perhaps("copies")?.unwrap_or(arithmetic),
        dispatch: loops.positive("dispatch", "the seconds that applying a function to a row costs")?,
    })
}

fn link(object: &Object<'_>) -> Result<Link, TargetError> {
    Ok(Link {
        latency: object.positive("latency", "the seconds that a collective costs before its first byte")?,
        bandwidth: object.positive("bandwidth", "the bytes per second that each rank sends")?,
    })
}

fn node(node: Object<'_>) -> Result<Node, TargetError> {
    let node = node.known(&["ranks", "latency", "bandwidth"])?;
    let json = node.value("ranks", "the number of ranks of a node")?;
    let ranks = json.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    Ok(Node { ranks: ranks.ok_or_else(|| kind(&node.at("ranks"), "a number of ranks", json))?, link: link(&node)? })
}

fn links(links: Object<'_>) -> Result<Links, TargetError> {
    let links = links.known(&["default", "node", "axes"])?;
    let default = links.object("default", "the link between nodes, or between any two ranks")?;
    let mut axes = BTreeMap::new();
    if let Some(json) = links.map.get("axes") {
        let named = Object::new(json, &links.at("axes"))?;
        for (name, json) in named.map {
            if !is_name(name) {
                return Err(kind(&named.path, "an object whose keys can name mesh axes", &Json::from(name.as_str())));
            }
            axes.insert(name.clone(), link(&Object::new(json, &named.at(name))?.known(&["latency", "bandwidth"])?)?);
        }
    }
    Ok(Links {
        default: link(&default.known(&["latency", "bandwidth"])?)?,
        node: links.map.get("node").map(|json| node(Object::new(json, &links.at("node"))?)).transpose()?,
        axes,
    })
}

impl Target {
    /// Parses a profile.
    ///
    /// # Errors
    /// The text is not JSON, a key is unknown, missing or occurs twice, or a value has the wrong kind.
    pub fn from_json(text: &str) -> Result<Self, TargetError> {
        let json = unique::parse(text).map_err(|error| match error {
            UniqueError::Syntax(problem) => TargetError::Json(problem),
            repeated => TargetError::Repeated(repeated),
        })?;
        let target = Object::new(&json, "")?.known(&["name", "device", "links", "mask"])?;
        let name = target.value("name", "its name in messages")?;
        Ok(Target {
            name: match name.as_str().filter(|name| !name.is_empty()) {
                Some(name) => name.into(),
                None => return Err(kind("name", "a name", name)),
            },
            device: device(target.object("device", "what executes a rank")?)?,
            links: links(target.object("links", "what connects the ranks")?)?,
            mask: target.positive(
                "mask",
                "the share of a reduction's latency that a mask costs, 0.5 in the built-in targets",
            )?,
        })
    }

    /// The profile as [`Target::from_json`] reads it.
    pub fn to_json(&self) -> String {
        let Target { name, device, links, mask } = self;
        let of_link = |link: &Link| json!({"latency": link.latency, "bandwidth": link.bandwidth});
        let mut products = json!({"f32": device.products.f32});
        for (dtype, rate) in
            [("bf16", device.products.bf16), ("f16", device.products.f16), ("f64", device.products.f64)]
        {
            if let Some(rate) = rate {
                products[dtype] = rate.into();
            }
        }
        let mut connected = json!({"default": of_link(&links.default)});
        if let Some(Node { ranks, link }) = &links.node {
            connected["node"] = json!({"ranks": ranks, "latency": link.latency, "bandwidth": link.bandwidth});
        }
        if !links.axes.is_empty() {
            connected["axes"] = links.axes.iter().map(|(name, link)| (name.clone(), of_link(link))).collect();
        }
        let mut described = json!({"kind": device.kind.name(), "products": products});
        if !device.product_shares.is_empty() {
            let shares =
                device.product_shares.iter().map(|Share { bytes, share }| json!({"bytes": bytes, "share": share}));
            described["product_shares"] = shares.collect();
        }
        described["memory"] = json!(device.memory);
        if !device.caches.is_empty() {
            let cache = |Cache { bytes, bandwidth }: &Cache| json!({"bytes": bytes, "bandwidth": bandwidth});
            described["caches"] = device.caches.iter().map(cache).collect();
        }
        if let Some(Loops { arithmetic, divisions, functions, copies, dispatch }) = device.loops {
            described["loops"] = json!({
                "arithmetic": arithmetic,
                "divisions": divisions,
                "functions": functions,
                "copies": copies,
                "dispatch": dispatch,
            });
        }
        for (key, number) in [
            ("launch", device.launch),
            ("view", device.view),
            ("fused_reads", device.fused_reads),
            ("capacity", device.capacity),
        ] {
            described[key] = json!(number);
        }
        let json = json!({
            "name": name,
            "device": described,
            "links": connected,
            "mask": mask,
        });
        format!("{json:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::BUILT_IN;

    #[test]
    fn profiles_are_read_as_they_are_written() {
        let mut all: Vec<Target> = BUILT_IN.iter().map(|name| Target::built_in(name).unwrap().clone()).collect();
        let mut named = all[1].clone();
        let odd = Link { latency: 1.25e-4, bandwidth: 1.2345e17 };
        named.links.axes = BTreeMap::from([("dp".into(), odd), ("tp_2".into(), named.links.default)]);
        named.name = "a \"name\"\n".into();
        named.device.product_shares = [1e5, 2.5e6].map(|bytes| Share { bytes, share: 1.0 / bytes }).to_vec();
        named.device.caches = vec![Cache { bytes: 2e6, bandwidth: 1e11 }];
        named.device.loops =
            Some(Loops { arithmetic: 1e10, divisions: 4e9, functions: 1.5e9, copies: 3e9, dispatch: 4e-9 });
        all.push(named);
        for target in all {
            assert_eq!(Target::from_json(&target.to_json()).unwrap(), target, "{}", target.to_json());
        }
    }

    /// A profile that does not say what divisions and copies cost takes the next rate that it has.
    #[test]
    fn rates_of_loops_that_are_missing_are_those_of_others() {
        let mut json: Json = serde_json::from_str(&Target::cpu().to_json()).unwrap();
        json["device"]["loops"] = json!({"arithmetic": 3e10, "functions": 1.5e9, "dispatch": 4e-9});
        let loops = Target::from_json(&json.to_string()).unwrap().device.loops.unwrap();
        let same = Loops { arithmetic: 3e10, divisions: 1.5e9, functions: 1.5e9, copies: 3e10, dispatch: 4e-9 };
        assert_eq!(loops, same);
    }

    /// Every object of the schema has exactly the keys that the parser knows, and requires those that the parser needs.
    #[test]
    fn the_schema_is_what_the_parser_accepts() {
        let schema: Json = serde_json::from_str(SCHEMA).unwrap();
        let mut full = Target::built_in("h100-node").unwrap().clone();
        full.links.axes.insert("dp".into(), full.links.default);
        full.device.product_shares = vec![Share { bytes: 1.0, share: 1.0 }];
        full.device.caches = vec![Cache { bytes: 1.0, bandwidth: 1.0 }];
        full.device.loops = Some(Loops { arithmetic: 1.0, divisions: 1.0, functions: 1.0, copies: 1.0, dispatch: 1.0 });
        let full: Json = serde_json::from_str(&full.to_json()).unwrap();
        let objects = [
            ("", &schema),
            ("/device", &schema["$defs"]["device"]),
            ("/device/products", &schema["$defs"]["products"]),
            ("/device/product_shares/0", &schema["$defs"]["share"]),
            ("/device/caches/0", &schema["$defs"]["cache"]),
            ("/device/loops", &schema["$defs"]["loops"]),
            ("/links", &schema["$defs"]["links"]),
            ("/links/default", &schema["$defs"]["link"]),
            ("/links/axes/dp", &schema["$defs"]["link"]),
            ("/links/node", &schema["$defs"]["node"]),
        ];
        for (pointer, described) in objects {
            let properties: Vec<&String> = described["properties"].as_object().unwrap().keys().collect();
            let required: Vec<&str> =
                described["required"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
            let given = full.pointer(pointer).unwrap().as_object().unwrap();
            let all: Vec<&String> = given.keys().collect();
            assert_eq!(all, properties, "{pointer}");
            for key in given.keys() {
                let mut without = full.clone();
                without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().shift_remove(key);
                let read = Target::from_json(&without.to_string());
                assert_eq!(read.is_err(), required.contains(&key.as_str()), "{pointer}/{key}: {read:?}");
            }
            let mut more = full.clone();
            more.pointer_mut(pointer).unwrap()["other"] = json!(1);
            assert!(matches!(Target::from_json(&more.to_string()), Err(TargetError::Key { .. })), "{pointer}");
        }
    }
}
