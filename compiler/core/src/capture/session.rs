//! One recording on the capture device.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use burn::tensor::{Device, FloatDType, IntDType, Tensor, TensorData};
use burn_capture::CaptureClient;
use burn_ir::{OperationIr, TensorId};
use burn_router::RouterClient;

use super::error::{CaptureError, guarded};
use super::kind::Untracked;
use super::operation::first_result;
use super::scope::{self, RawScope};

thread_local! {
    // A process can create 65,536 capture devices and cannot free them, but a device serves any number of consecutive
    // recordings.
    static DEVICES: RefCell<Vec<(Defaults, Device)>> = const { RefCell::new(Vec::new()) };
}

/// The element types that a device gives to tensors without a specified type, such as the result of an `argmax` or a
/// tensor made from numbers. A closure may rely on them, so it records on a device with the defaults of the device of
/// its batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Defaults(Option<(FloatDType, IntDType)>);

impl Defaults {
    /// The defaults of a device.
    pub(crate) fn of(device: &Device) -> Self {
        let settings = device.settings();
        Defaults(Some((settings.float_dtype, settings.int_dtype)))
    }

    /// The recording device for these defaults.
    fn device(self) -> Device {
        DEVICES.with_borrow_mut(|devices| match devices.iter().find(|(defaults, _)| *defaults == self) {
            Some((_, device)) => device.clone(),
            None => {
                devices.push((self, Device::capture()));
                devices[devices.len() - 1].1.clone()
            }
        })
    }

    /// Sets the defaults of a device. burn requires that a recording has begun.
    fn apply_to(self, device: &Device) {
        if let Some(types) = self.0 {
            // A device of an earlier recording already has them. Types that cannot be recorded cause an error once a
            // closure makes a tensor of them.
            let _ = device.clone().configure(types);
        }
    }
}

/// A running recording.
pub(super) struct Session {
    pub(super) device: Device,
    client: CaptureClient,
}

/// The result of a recording.
pub(super) struct Recorded {
    /// The operations in order, with increasing ids of results.
    pub(super) operations: Vec<OperationIr>,
    /// The data of tensors that were not computed.
    pub(super) values: BTreeMap<u64, TensorData>,
    pub(super) scopes: Vec<RawScope>,
}

/// Records the operations of `f`.
pub(super) fn record<R>(defaults: Defaults, f: impl FnOnce(&Session) -> R) -> Result<(R, Recorded), CaptureError> {
    let device = defaults.device();
    let mut outcome = None;
    let captured = guarded(|| {
        device.capture_scope(|token| {
            defaults.apply_to(&device);
            let session = Session { device: device.clone(), client: client(&device) };
            outcome = Some(scope::collect(session.client.clone(), || f(&session)));
            // Inputs and outputs are determined by this crate: burn would reject an output that is also consumed, or an
            // unused input.
            token.complete([], [])
        })
    })?
    .map_err(|error| match error {
        burn_capture::CaptureError::AlreadyActive => CaptureError::AlreadyCapturing,
        other => CaptureError::Inconsistent(other.to_string()),
    })?;
    let (result, scopes) = outcome.ok_or_else(|| CaptureError::Inconsistent("the recording did not run".into()))?;
    if !captured.graph.operations.is_sorted_by_key(first_result) {
        return Err(CaptureError::Inconsistent("results are not numbered in order".into()));
    }
    let values = captured.values.into_iter().map(|(id, data)| (id.value(), data)).collect();
    let mut operations = captured.graph.operations;
    // `Init` only indicates that a tensor was made from data, which is in `values`.
    operations.retain(|op| !matches!(op, OperationIr::Init(_)));
    Ok((result, Recorded { operations, values, scopes }))
}

/// The client of the running recording, which burn exposes only through a tensor.
fn client(device: &Device) -> CaptureClient {
    let probe = Tensor::<1>::from_data([0f32], device);
    probe.try_into_primitive::<Untracked>().expect("the device is a capture device").client.clone()
}

impl Session {
    /// An id that is greater than all ids recorded so far and less than all later ones.
    pub(super) fn mark(&self) -> u64 {
        self.client.create_empty_handle().value()
    }

    /// Makes every recorded tensor in `ids` readable: its "value" is its id ([`read_label`]).
    ///
    /// An optimizer state is opaque. Its tensors are accessible by name only by reading them
    /// (`RecordState::state_flatten`), which fails for a computed tensor. An alias to a constant that encodes the id
    /// makes the read succeed and answer "which tensor is the state `moment_1`?". Aliases also redirect operations, so
    /// this must be the last step of a recording.
    pub(super) fn label(&self, ids: Range<u64>) {
        for id in ids {
            let label = self.client.register_tensor_data(label(id));
            self.client.register_alias(TensorId::new(id), label.id());
        }
    }
}

/// f32 represents integers exactly up to 2^24, so two of them suffice for an id.
const LABEL_BASE: u64 = 1 << 24;

fn label(id: u64) -> TensorData {
    TensorData::from([(id / LABEL_BASE) as f32, (id % LABEL_BASE) as f32])
}

/// Decodes the id that [`Session::label`] encoded.
pub(super) fn read_label(data: &TensorData) -> Option<u64> {
    let digits: Vec<f32> = data.clone().try_into_vec().ok()?;
    let [high, low] = digits[..] else { return None };
    Some(high as u64 * LABEL_BASE + low as u64)
}
