/* An external delegate for the tests: claims every ADD of float32 tensors of one size, or what its options say.
 *
 * Options: op=ADD|LOGISTIC (what is claimed), offset=NUMBER (is added to every result, which shows who computed it),
 * refuse=TEXT (the plug-in refuses with that text), fail=yes (a claimed node fails when it runs), fail=early
 * (the delegate fails on every file).
 *
 * The declarations are those of TensorFlow Lite's C interface (core/c/common.h) as far as this file reads them; each
 * struct that the runtime reads or that is passed by value is complete. Their sizes on 64-bit machines are asserted.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int size; int data[]; } IntArray;
typedef struct { float scale; int32_t zero_point; } QuantizationParams;
typedef struct { int type; void *params; } Quantization;

typedef struct {
  int type; /* 1 is float32 */
  union { float *f; void *data; } data;
  IntArray *dims;
  QuantizationParams params;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  struct Delegate *delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  Quantization quantization;
  void *sparsity;
  const IntArray *dims_signature;
} Tensor;

typedef struct {
  IntArray *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
  const void *custom_initial_data;
  int custom_initial_data_size;
  struct Delegate *delegate;
  bool might_have_side_effect;
} Node;

typedef struct Context Context;

typedef struct {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *registration_external;
  void *async_kernel;
  uint64_t inplace_operator;
} Registration;

/* The runtime makes it: its first members are enough. */
struct Context {
  size_t tensors_size;
  int (*GetExecutionPlan)(Context *, IntArray **);
  Tensor *tensors;
  void *impl_;
  void *ResizeTensor, *ReportError, *AddTensors;
  int (*GetNodeAndRegistration)(Context *, int, Node **, Registration **);
  int (*ReplaceNodeSubsetsWithDelegateKernels)(Context *, Registration, const IntArray *, struct Delegate *);
};

typedef struct Delegate {
  void *data_;
  int (*Prepare)(Context *, struct Delegate *);
  void *CopyFromBufferHandle, *CopyToBufferHandle, *FreeBufferHandle;
  int64_t flags;
  void *opaque_delegate_builder;
} Delegate;

_Static_assert(sizeof(void *) != 8 || sizeof(Tensor) == 112, "Tensor");
_Static_assert(sizeof(void *) != 8 || sizeof(Registration) == 88, "Registration");
_Static_assert(sizeof(void *) != 8 || sizeof(Delegate) == 56, "Delegate");

enum { OK = 0, ERROR = 1, FLOAT32 = 1, ADD = 0, LOGISTIC = 14, MOST_NODES = 64 };

typedef struct { int code; float offset; bool fail, fail_early; } Settings;

/* What one claimed group of nodes is: see TfLiteDelegateParams. */
typedef struct { Delegate *delegate; IntArray *nodes, *inputs, *outputs; } Part;
typedef struct { Settings settings; int count; int first[MOST_NODES], second[MOST_NODES], output[MOST_NODES]; } Kernel;

static void *kernel_init(Context *context, const char *buffer, size_t length) {
  (void)length;
  const Part *part = (const Part *)buffer;
  Kernel *kernel = calloc(1, sizeof *kernel);
  kernel->settings = *(Settings *)part->delegate->data_;
  for (int i = 0; i < part->nodes->size && i < MOST_NODES; ++i) {
    Node *node;
    Registration *registration;
    context->GetNodeAndRegistration(context, part->nodes->data[i], &node, &registration);
    kernel->first[i] = node->inputs->data[0];
    kernel->second[i] = node->inputs->data[node->inputs->size - 1];
    kernel->output[i] = node->outputs->data[0];
    kernel->count = i + 1;
  }
  return kernel;
}

static void kernel_free(Context *context, void *kernel) {
  (void)context;
  free(kernel);
}

static int kernel_prepare(Context *context, Node *node) {
  (void)context, (void)node;
  return OK;
}

static int kernel_invoke(Context *context, Node *node) {
  const Kernel *kernel = node->user_data;
  if (kernel->settings.fail) return ERROR;
  for (int i = 0; i < kernel->count; ++i) {
    const Tensor *a = &context->tensors[kernel->first[i]], *b = &context->tensors[kernel->second[i]];
    const Tensor *out = &context->tensors[kernel->output[i]];
    for (size_t place = 0; place < out->bytes / sizeof(float); ++place) {
      const float value = a->data.f[place];
      out->data.f[place] = kernel->settings.offset +
          (kernel->settings.code == ADD ? value + b->data.f[place] : 1 / (1 + expf(-value)));
    }
  }
  return OK;
}

static int delegate_prepare(Context *context, Delegate *delegate) {
  const Settings *settings = delegate->data_;
  IntArray *plan;
  if (settings->fail_early) return ERROR;
  if (context->GetExecutionPlan(context, &plan) != OK) return ERROR;
  IntArray *claimed = calloc(1, sizeof(IntArray) + MOST_NODES * sizeof(int));
  for (int i = 0; i < plan->size && claimed->size < MOST_NODES; ++i) {
    Node *node;
    Registration *registration;
    context->GetNodeAndRegistration(context, plan->data[i], &node, &registration);
    const Tensor *a = &context->tensors[node->inputs->data[0]], *out = &context->tensors[node->outputs->data[0]];
    if (registration->builtin_code == settings->code && out->type == FLOAT32 && a->bytes == out->bytes)
      claimed->data[claimed->size++] = plan->data[i];
  }
  const Registration kernel = {kernel_init, kernel_free, kernel_prepare, kernel_invoke, .custom_name = "OneOp",
                               .version = 1};
  const int status = context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, claimed, delegate);
  free(claimed);
  return status;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  Settings settings = {ADD, 0, false, false};
  for (size_t i = 0; i < count; ++i) {
    if (!strcmp(keys[i], "op")) settings.code = strcmp(values[i], "LOGISTIC") ? ADD : LOGISTIC;
    else if (!strcmp(keys[i], "offset")) settings.offset = strtof(values[i], NULL);
    else if (!strcmp(keys[i], "fail")) settings.fail = !strcmp(values[i], "yes"), settings.fail_early = !settings.fail;
    else {
      report(!strcmp(keys[i], "refuse") ? values[i] : "unknown option");
      return NULL;
    }
  }
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->data_ = malloc(sizeof settings);
  memcpy(delegate->data_, &settings, sizeof settings);
  delegate->Prepare = delegate_prepare;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  if (delegate) free(delegate->data_);
  free(delegate);
}
