//! The steps of a run.

use super::Run;
use super::data::Source;
use super::evaluation::{evaluate, feed_batch, forget_later, keep_best};
use super::events::Events;
use super::failure::{diverged, no_number};
use super::gradients::{norm, write_gradients};
use super::metrics::{Lines, Metrics, Row};
use super::outputs::Outputs;
use super::progress::Progress;
use super::state::State;
use crate::{Failure, Outcome, Terminal};
use std::time::Instant;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::TrainingSession;
use tpc_data::Stream;
use tpc_runtime::checkpoint::SaveOptions;
use tpc_runtime::launch::stop::{Signal, Stop};

/// The source of batches.
enum Batches<'a> {
    Fixed(&'a crate::data::Batch),
    Texts(Box<Stream>, usize),
}

impl Batches<'_> {
    /// Writes the batch of the next step; `first` says whether it is the first one of this session. Returns its number
    /// of tokens without padding, and its epoch.
    fn feed(&mut self, training: &mut TrainingSession, first: bool) -> Outcome<Option<(usize, Option<u64>)>> {
        match self {
            // Inputs keep their contents.
            Batches::Fixed(batch) => {
                if first {
                    batch.feed(training.session())?;
                }
                Ok(Some((batch.tokens.batch * batch.tokens.seq, None)))
            }
            Batches::Texts(stream, rows) => {
                let Some(batch) = stream.next(*rows)? else { return Ok(None) };
                feed_batch(training.session(), &batch)?;
                Ok(Some((batch.tokens, Some(batch.epoch))))
            }
        }
    }

    fn stream(&self) -> Option<&Stream> {
        match self {
            Batches::Fixed(_) => None,
            Batches::Texts(stream, _) => Some(stream),
        }
    }
}

impl Run<'_> {
    pub(super) fn execute(
        &self,
        training: &mut TrainingSession,
        mut state: State,
        outputs: Outputs,
        terminal: &mut Terminal,
        begin: &dyn Fn(&mut TrainingSession) -> Outcome,
    ) -> Outcome {
        let Run { train, source, steps, .. } = *self;
        let TokenBatch { batch, seq, .. } = source.tokens();
        let done = training.steps_done() as u64;
        let Outputs { mut grads, metrics, events } = outputs;
        let lines = metrics.map(|output| Lines::new(output, done)).transpose()?;
        let events = events.map(|dir| Events::new(&dir, done)).transpose()?;
        let mut metrics = Metrics { lines, events };
        if let Some(dir) = &train.checkpoint {
            forget_later(dir, done)?;
        }
        let mut batches = match source {
            Source::Fixed(batch) => Batches::Fixed(batch),
            Source::Texts(texts) => {
                training.session().must_agree("the text of --data", texts.train.made().data);
                let stream = Stream::start(texts.train.clone(), state.data.as_ref(), train.epochs)?;
                Batches::Texts(Box::new(stream), batch)
            }
        };
        state.steps = self.schedule.has_end().then_some(steps);
        let progress = Progress::new(done, steps);
        // Without a checkpoint there is no reason to finish the step.
        let processes = training.session().processes().clone();
        let stop = train.checkpoint.is_some().then(|| Stop::catch(&*processes));
        let deadline = train.running.options()?.deadline;
        let mut tokens = 0;
        for step in done + 1..=steps {
            let Some((own, epoch)) = batches.feed(training, step == done + 1)? else { break };
            tokens += own;
            let (start, lr) = (Instant::now(), self.schedule.rate(step - 1));
            let loss = training.step(lr)?;
            let seconds = start.elapsed().as_secs_f64();
            // Reading an output is a collective of all processes, so each of them reads it, even where only the first
            // writes metrics.
            let measures = train.metrics.is_some() || train.tensorboard.is_some();
            let norm = if measures { norm(training.session())? } else { None };
            if step == 1 && train.grads.is_some() {
                write_gradients(training.session(), self.map, grads.take())?;
            }
            state.data = batches.stream().map(Stream::position);
            let is_last = step == steps;
            let evaluated = match source.texts().and_then(|texts| texts.evaluate.as_ref()) {
                Some(recipe) if loss.is_finite() && (is_last || train.eval_every.is_some_and(|n| step % n == 0)) => {
                    Some(evaluate(training, recipe, batch, train.eval_batches)?)
                }
                _ => None,
            };
            let (ms, rate) = (seconds * 1e3, (batch * seq) as f64 / seconds);
            let row = Row { step, loss, ms, rate, lr, norm, epoch, evaluated };
            metrics.write(&row)?;
            if !loss.is_finite() {
                let first = step == done + 1;
                return Err(if first {
                    no_number(training, self.map, step, loss, begin)?
                } else {
                    diverged(step, loss)
                });
            }
            progress.tell(&row, terminal)?;
            if let Some(loss) = evaluated {
                keep_best(training, train.checkpoint.as_deref(), &mut state, (step, loss), &self.save)?;
            }
            let asked = stop.as_ref().map_or(Ok(None), |stop| stop.asked(deadline))?;
            if asked.is_some() {
                progress.abandon();
            }
            self.checkpoint(training, (step, &state), asked, progress.is_lines(), terminal)?;
        }
        progress.finish();
        if let (Some(stream), true) = (batches.stream(), steps > done) {
            let elapsed = progress.elapsed().as_secs_f64();
            let waited = stream.waited().as_secs_f64() / elapsed.max(f64::MIN_POSITIVE);
            let summary = self.work.summary(training.session(), (steps - done, tokens), elapsed, waited);
            terminal.print(format!("{summary}\n"))?;
        }
        Ok(())
    }

    /// Writes a checkpoint if it is due. If a signal asked the run to end, always writes one, and reports what is kept.
    fn checkpoint(
        &self,
        training: &TrainingSession,
        (step, state): (u64, &State),
        asked: Option<Signal>,
        tell: bool,
        terminal: &mut Terminal,
    ) -> Outcome {
        let Some(dir) = &self.train.checkpoint else { return Ok(()) };
        let is_time = step == self.steps || self.train.save_every.is_some_and(|every| step.is_multiple_of(every));
        if !is_time && asked.is_none() {
            return Ok(());
        }
        let options = SaveOptions { run: Some(state.text()?), ..self.save.clone() };
        let path = training.save_checkpoint_with(dir, &options)?;
        let Some(signal) = asked else {
            return if tell { terminal.print(format!("checkpoint {}\n", path.display())) } else { Ok(()) };
        };
        let (kept, steps) = (path.display(), self.steps);
        let begin = format!("{signal} ended the run after step {step} of {steps}, which is kept in {kept}");
        let how = match (&*self.again, tpc_runtime::launch::joined()) {
            ("", _) => "; the same command continues from there".into(),
            (_, Some(_)) => "; the same command with --resume continues from there".into(),
            (again, None) => format!("; to continue: {again}"),
        };
        Err(Failure::Stopped(signal.exit_code(), begin + &how))
    }
}
