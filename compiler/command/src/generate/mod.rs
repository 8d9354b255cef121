//! `tpc generate`: generates text from a causal language model, with a cache of keys and values.

mod prompts;
mod stop;

use crate::files::{self, Files};
use crate::given::Given;
use crate::launch::{Running, leads};
use crate::options::Types;
use crate::settings::{compare_files, model_files};
use crate::subject::executed;
use crate::trace::Traced;
use crate::{Failure, Outcome, Placement, Terminal};
use clap::Args;
use prompts::Prompt;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use stop::Shown;
use tpc_compiler::generate::{Choice, Chosen, Generate as Asked, Generated, Generator, Limits, Sampling, Why};
use tpc_compiler::models::ModelDir;
use tpc_compiler::pretrained::load_weights;
use tpc_data::Tokenizer;
use tpc_data::tokenizer::Decoder;
use tpc_passes::options::Precision;

/// Generate text from prompts.
#[derive(Debug, Args)]
pub struct Generate {
    /// Directory with config.json, safetensors and a tokenizer
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    pub(crate) running: Running,
    /// A text to continue; may be repeated
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts", conflicts_with = "prompts")]
    prompt: Vec<String>,
    /// File with one prompt per line: a text, or an object with "prompt", "tokens" or "messages"
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Maximum number of tokens to generate for each prompt
    #[arg(long, value_name = "N", default_value = "64")]
    new_tokens: NonZeroUsize,
    /// Prompts that are processed at a time [default: all, up to 8]
    #[arg(long, value_name = "N")]
    batch: Option<NonZeroUsize>,
    /// Draw tokens from the softmax of the logits divided by X; without it, or with 0, take the most likely token
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Draw from the K most likely tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<NonZeroUsize>,
    /// Draw from the smallest set of most likely tokens whose total probability reaches P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Divide the logits of tokens that already occurred by X if positive, and multiply them by X if negative
    #[arg(long, value_name = "X", default_value = "1")]
    repetition_penalty: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Element type of weights, cache and products; statistics of norms and softmax stay f32
    #[arg(long, value_enum, default_value = "f32")]
    precision: Types,
    /// Text that ends a generation and is not shown; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Continue past tokens that end a text
    #[arg(long)]
    ignore_end: bool,
    /// File for one JSON object per prompt: text, tokens, and why it ended
    #[arg(long, value_name = "FILE.jsonl")]
    output: Option<PathBuf>,
    #[command(flatten)]
    traced: Traced,
}

/// Default limit on the number of prompts that are processed at a time.
const BATCH: usize = 8;

impl Generate {
    /// The files that must be the same for all processes, except for large weights.
    pub(crate) fn reads(&self) -> Vec<(String, PathBuf)> {
        let prompts = self.prompts.iter().map(|file| ("--prompts".to_string(), file.clone()));
        model_files(&self.model, true).into_iter().chain(prompts).collect()
    }

    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        let sampling = self.sampling(given)?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Failure::new("--stop: an empty text would end every generation before it begins"));
        }
        self.placement.refuse_auto()?;
        let (mesh, plan, mut options) = (
            self.placement.executed_mesh()?,
            self.placement.plan()?,
            self.placement.options(self.running.backend(), false, self.seed)?,
        );
        options.step.precision = (self.precision == Types::Bf16).then(Precision::default);
        let dir = ModelDir::open(&self.model)?;
        dir.warnings.iter().for_each(|warning| terminal.note(warning));
        let weights: Vec<PathBuf> = dir.weights.files().map(Path::to_path_buf).collect();
        compare_files(&weights, &self.running)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let tokenizer = Tokenizer::of_dir(&self.model, now)?;
        let prompts = match &self.prompts {
            Some(file) => prompts::read(file)?,
            None => self.prompt.iter().cloned().map(Prompt::Text).collect(),
        };
        let tokens: Vec<Vec<i64>> =
            (0..).zip(&prompts).map(|(at, p)| self.encode(at, p, tokenizer.as_ref())).collect::<Outcome<_>>()?;
        if tokenizer.is_none() && !self.stop.is_empty() {
            return Err(Failure::at(&self.model, "has no tokenizer, and --stop needs the text of tokens"));
        }
        let files = Files::default().reads_model(&dir);
        let files = self.prompts.iter().fold(files, |files, file| files.reads("--prompts", file));
        self.traced.writes(self.placement.read(files).writes("--output", &self.output)).check()?;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(1);
        let batch = self.batch.map_or(BATCH, NonZeroUsize::get).min(tokens.len());
        let limits = Limits { batch, prompt: longest, new_tokens: self.new_tokens.get() };
        dir.config.check_memory([batch, longest], executed(&self.running, mesh.ranks(), 1))?;
        let output = match &self.output {
            Some(file) if leads() => Some(files::output(file)?),
            _ => None,
        };
        let trace = self.traced.output()?;
        self.placement.note(&mesh, &plan, &options.target, terminal);
        self.running.note(mesh.ranks(), terminal);
        let mut generator = Generator::launch(
            &dir.config,
            &mesh,
            &plan,
            &options,
            self.traced.options(self.running.options()?),
            limits,
        )
        .map_err(|e| self.placement.failure(e))?;
        load_weights(generator.session()?, &dir.weight_map(), &dir.weights)?;
        let asked = Asked { sampling, new_tokens: limits.new_tokens, ends: self.ends(tokenizer.as_ref())? };
        let mut lines = String::new();
        let (begun, mut count) = (Instant::now(), 0);
        for (group, first) in tokens.chunks(batch).zip((0..).step_by(batch)) {
            let one = tokens.len() == 1 && tokenizer.is_some();
            let texts = self.group(&mut generator, group, &asked, tokenizer.as_ref(), one, terminal)?;
            for (at, (generated, text)) in texts.into_iter().enumerate() {
                count += generated.tokens.len();
                let line = object(first + at, &prompts[first + at], &generated, text.as_deref());
                if !one {
                    terminal.print(format!("{line}\n"))?;
                }
                lines.push_str(&format!("{line}\n"));
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        terminal.note(format!("{count} tokens in {seconds:.2} s, {:.1} tokens/s", count as f64 / seconds));
        self.traced.write(generator.latest(), trace, terminal)?;
        if let Some(output) = output {
            files::write(output, lines.as_bytes())?;
        }
        Ok(())
    }

    /// Generates from a group of prompts and returns the results with their texts. The text of a single prompt is shown
    /// as it is generated.
    fn group(
        &self,
        generator: &mut Generator,
        prompts: &[Vec<i64>],
        asked: &Asked,
        tokenizer: Option<&Tokenizer>,
        streams: bool,
        terminal: &mut Terminal,
    ) -> Outcome<Vec<(Generated, Option<String>)>> {
        let mut shown: Vec<Shown> = prompts.iter().map(|_| Shown::new(&self.stop)).collect();
        let mut decoders: Vec<Option<Decoder>> = prompts.iter().map(|_| tokenizer.map(Tokenizer::decoder)).collect();
        let mut failed: Outcome = Ok(());
        let mut listen = |chosen: Chosen<'_>| {
            let Some(decoder) = &mut decoders[chosen.prompt] else { return true };
            let shown = &mut shown[chosen.prompt];
            // A row of the embedding that is not a token has no text.
            let text = u32::try_from(chosen.token).ok().and_then(|id| decoder.push(id).ok()).unwrap_or_default();
            let new = shown.push(&text);
            if streams && failed.is_ok() {
                failed = terminal.print(new);
            }
            failed.is_ok() && !shown.ended()
        };
        let generated = generator.generate(prompts, asked, &mut listen)?;
        failed?;
        let mut texts = Vec::new();
        for ((generated, mut shown), decoder) in generated.into_iter().zip(shown).zip(decoders) {
            let text = match decoder {
                None => None,
                Some(decoder) => {
                    let rest = decoder.finish().unwrap_or_default();
                    let mut last = shown.push(&rest).to_string();
                    last.push_str(shown.finish());
                    if streams {
                        terminal.print(last + "\n")?;
                    }
                    Some(shown.text().to_string())
                }
            };
            texts.push((generated, text));
        }
        Ok(texts)
    }

    fn sampling(&self, given: &Given) -> Outcome<Sampling> {
        let positive = |flag: &str, x: f64| match x.is_finite() && x > 0.0 {
            true => Ok(x),
            false => Err(Failure::new(format!("{flag} is {x}, but it must be a number above 0"))),
        };
        let repetition_penalty = positive("--repetition-penalty", self.repetition_penalty)?;
        let temperature = match self.temperature {
            None | Some(0.0) => {
                given.refuse(&["top_k", "top_p", "seed"], "without --temperature: the most likely token is taken")?;
                return Ok(Sampling { choice: Choice::Greedy, repetition_penalty });
            }
            Some(temperature) => positive("--temperature", temperature)?,
        };
        let top_p = self.top_p.unwrap_or(1.0);
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Failure::new(format!("--top-p is {top_p}, but a probability above 0 and up to 1 is needed")));
        }
        let top_k = self.top_k.map(NonZeroUsize::get);
        Ok(Sampling { choice: Choice::Draw { temperature, top_k, top_p, seed: self.seed }, repetition_penalty })
    }

    /// The tokens of a prompt.
    fn encode(&self, number: usize, prompt: &Prompt, tokenizer: Option<&Tokenizer>) -> Outcome<Vec<i64>> {
        let needed = || {
            tokenizer.ok_or_else(|| {
                Failure::at(&self.model, "has no tokenizer: give prompts as \"tokens\" with --prompts, or train one with `tpc tokenizer train`")
            })
        };
        let ids = match prompt {
            Prompt::Tokens(tokens) => return Ok(tokens.clone()),
            Prompt::Text(text) => needed()?.encode(text)?,
            Prompt::Messages(messages) => {
                let tokenizer = needed()?;
                let template = tokenizer.template().ok_or_else(|| {
                    Failure::at(
                        &self.model,
                        format!("has no chat template, which the messages of prompt {number} need"),
                    )
                })?;
                let text = template.render(&serde_json::Value::Array(messages.clone()), None, true)?;
                // A template writes the tokens that begin a text itself.
                tokenizer.encode_bare(&text)?.ids
            }
        };
        if ids.is_empty() {
            return Err(Failure::new(format!("prompt {number} has no tokens to continue")));
        }
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// The tokens that end a text: from generation_config.json, otherwise from config.json, otherwise from the
    /// tokenizer.
    fn ends(&self, tokenizer: Option<&Tokenizer>) -> Outcome<Vec<i64>> {
        if self.ignore_end {
            return Ok(Vec::new());
        }
        let mut ends: Vec<i64> = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let file = self.model.join(name);
            if !file.is_file() {
                continue;
            }
            let bytes = std::fs::read(&file).map_err(|e| Failure::at(&file, e))?;
            let json: serde_json::Value = serde_json::from_slice(&bytes).map_err(|e| Failure::at(&file, e))?;
            match json.get("eos_token_id") {
                Some(serde_json::Value::Array(several)) => ends.extend(several.iter().filter_map(|id| id.as_i64())),
                Some(one) => ends.extend(one.as_i64()),
                None => {}
            }
            if !ends.is_empty() {
                break;
            }
        }
        if ends.is_empty() {
            ends.extend(tokenizer.and_then(Tokenizer::eos).map(i64::from));
        }
        Ok(ends)
    }
}

/// A generated text as a line of the output.
fn object(number: usize, prompt: &Prompt, generated: &Generated, text: Option<&str>) -> serde_json::Value {
    let ended = match generated.why {
        Why::Length => "length",
        Why::End => "end",
        Why::Stopped => "stop",
    };
    let mut line = json!({"number": number, "tokens": generated.tokens, "ended": ended});
    if let Prompt::Text(prompt) = prompt {
        line["prompt"] = json!(prompt);
    }
    if let Some(text) = text {
        line["text"] = json!(text);
    }
    line
}
