// SPDX-License-Identifier: Apache-2.0
// Importing acmix_mm.ops._C registers the operators; the module itself is empty.
#include <Python.h>

extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
