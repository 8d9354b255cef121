//! Batches that hold data, and results that are returned with values.
//!
//! A capture needs only shapes ([`Batch`], [`Tensors`]). An execution needs the tensors of a batch by name, and turns
//! the returned data into tensors.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::kind::Kind;
use super::tensors::{Batch, Named, Tensors, for_tuples, nested};

/// A batch that holds the data of a step. `#[derive(tpc::Batch)]` implements this trait for a struct of tensors.
pub trait BatchData: Batch {
    /// Shows every tensor that [`Batch::record`] declares, in the same order and under the same names.
    fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>);
}

/// The tensors of a batch.
#[derive(Default)]
pub struct BatchFields<'batch> {
    pub(crate) list: Vec<BatchField<'batch>>,
}

/// A tensor of a batch.
pub(crate) struct BatchField<'batch> {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    read: Box<dyn Fn() -> Result<TensorData, String> + 'batch>,
}

impl<'batch> BatchFields<'batch> {
    /// The fields of a batch.
    pub(crate) fn of<B: BatchData + ?Sized>(batch: &'batch B) -> Self {
        let mut fields = BatchFields::default();
        batch.show(None, &mut fields);
        fields
    }

    /// Shows one tensor. A tensor without a name is called `input0`, `input1`, … by position. Its data is read only if
    /// the program reads it.
    pub fn tensor<const D: usize, K: Kind>(&mut self, name: Option<&str>, tensor: &'batch Tensor<D, K>) {
        self.list.push(BatchField {
            name: name.map_or_else(|| format!("input{}", self.list.len()), str::to_owned),
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype(),
            device: tensor.device(),
            read: Box::new(|| tensor.try_to_data().map_err(|error| error.to_string())),
        });
    }
}

impl BatchField<'_> {
    /// Reads the elements of the tensor.
    pub(crate) fn read(&self) -> Result<TensorData, String> {
        (self.read)()
    }
}

impl<const D: usize, K: Kind> BatchData for Tensor<D, K> {
    fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>) {
        fields.tensor(name, self);
    }
}

impl<T: BatchData> BatchData for Named<T> {
    fn show<'batch>(&'batch self, _: Option<&str>, fields: &mut BatchFields<'batch>) {
        self.value().show(Some(self.name()), fields);
    }
}

impl<T: BatchData + ?Sized> BatchData for &T {
    fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>) {
        (**self).show(name, fields);
    }
}

impl<T: BatchData> BatchData for Option<T> {
    fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>) {
        if let Some(value) = self {
            value.show(name, fields);
        }
    }
}

impl<T: BatchData> BatchData for Vec<T> {
    fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>) {
        for (index, value) in self.iter().enumerate() {
            value.show(nested(name, index).as_deref(), fields);
        }
    }
}

impl BatchData for () {
    fn show<'batch>(&'batch self, _: Option<&str>, _: &mut BatchFields<'batch>) {}
}

/// Results of a closure that can be returned with values.
pub trait Results: Tensors {
    /// The same results with values on the caller's device, without names.
    type Values;
    /// The structure of the results without the tensors: which options are present, and the length of each list.
    type Form: 'static;

    /// The form of these results.
    fn form(&self) -> Self::Form;

    /// Assembles the results from values in the order of [`Tensors::leaves`].
    fn restore(form: &Self::Form, values: &mut ResultValues) -> Self::Values;
}

/// The values of results, in order.
pub struct ResultValues {
    values: std::vec::IntoIter<TensorData>,
    device: Device,
}

impl ResultValues {
    pub(crate) fn new(values: Vec<TensorData>, device: Device) -> Self {
        Self { values: values.into_iter(), device }
    }

    /// The next tensor.
    ///
    /// # Panics
    /// If there is none or its rank differs, because the form belongs to other results.
    pub fn tensor<const D: usize, K: Kind>(&mut self) -> Tensor<D, K> {
        let data = self.values.next().expect("there is a value for every tensor of the form");
        K::with_data(data, &self.device)
    }
}

impl<const D: usize, K: Kind> Results for Tensor<D, K> {
    type Values = Self;
    type Form = ();
    fn form(&self) {}
    fn restore((): &(), values: &mut ResultValues) -> Self {
        values.tensor()
    }
}

impl<T: Results> Results for Named<T> {
    type Values = T::Values;
    type Form = T::Form;
    fn form(&self) -> T::Form {
        self.value().form()
    }
    fn restore(form: &T::Form, values: &mut ResultValues) -> T::Values {
        T::restore(form, values)
    }
}

impl<T: Results> Results for Option<T> {
    type Values = Option<T::Values>;
    type Form = Option<T::Form>;
    fn form(&self) -> Option<T::Form> {
        self.as_ref().map(Results::form)
    }
    fn restore(form: &Option<T::Form>, values: &mut ResultValues) -> Option<T::Values> {
        form.as_ref().map(|form| T::restore(form, values))
    }
}

impl<T: Results> Results for Vec<T> {
    type Values = Vec<T::Values>;
    type Form = Vec<T::Form>;
    fn form(&self) -> Vec<T::Form> {
        self.iter().map(Results::form).collect()
    }
    fn restore(form: &Vec<T::Form>, values: &mut ResultValues) -> Vec<T::Values> {
        form.iter().map(|form| T::restore(form, values)).collect()
    }
}

impl Results for () {
    type Values = ();
    type Form = ();
    fn form(&self) {}
    fn restore((): &(), _: &mut ResultValues) {}
}

macro_rules! tuple {
    ($($t:ident $i:tt),+) => {
        impl<$($t: BatchData),+> BatchData for ($($t,)+) {
            fn show<'batch>(&'batch self, name: Option<&str>, fields: &mut BatchFields<'batch>) {
                $(self.$i.show(nested(name, $i).as_deref(), fields);)+
            }
        }

        impl<$($t: Results),+> Results for ($($t,)+) {
            type Values = ($($t::Values,)+);
            type Form = ($($t::Form,)+);
            fn form(&self) -> Self::Form {
                ($(self.$i.form(),)+)
            }
            fn restore(form: &Self::Form, values: &mut ResultValues) -> Self::Values {
                ($($t::restore(&form.$i, values),)+)
            }
        }
    };
}
for_tuples!(tuple);
