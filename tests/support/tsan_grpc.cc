// Linked into every binary of a ThreadSanitizer build, as tsan_absl.cc is: Debian's gRPC is not
// instrumented, so TSan would not see that an operation is started before its completion is told,
// often on another thread. These functions take the place of the library's own, tell TSan by the
// operation's tag, and call them. Where callbacks take the place of a queue the tag is the functor
// that gRPC runs, and another one stands before it.
#include <dlfcn.h>
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);

}  // extern "C"

namespace {

using Functor = grpc_completion_queue_functor;

// grpc::internal::CallbackWithSuccessTag::StaticRun: runs the reaction to a batch.
void (*React())(Functor*, int) {
  static auto* const real = reinterpret_cast<void (*)(Functor*, int)>(dlsym(
      RTLD_DEFAULT,
      "_ZN4grpc8internal22CallbackWithSuccessTag9StaticRunEP29grpc_completion_queue_functori"));
  return real;
}

void AcquireAndReact(Functor* functor, int ok) {
  __tsan_acquire(functor);
  React()(functor, ok);
}

}  // namespace

extern "C" {
grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static auto* const real =
      reinterpret_cast<decltype(&grpc_call_start_batch)>(dlsym(RTLD_NEXT, "grpc_call_start_batch"));
  // Of other tags this word is a vtable's address.
  if (auto* functor = static_cast<Functor*>(tag); functor->functor_run == React()) {
    functor->functor_run = &AcquireAndReact;
  }
  __tsan_release(tag);
  return real(call, ops, count, tag, reserved);
}

grpc_call_error grpc_server_request_call(grpc_server* server, grpc_call** call,
                                         grpc_call_details* details,
                                         grpc_metadata_array* initial_metadata,
                                         grpc_completion_queue* for_call,
                                         grpc_completion_queue* for_notification, void* tag) {
  static auto* const real = reinterpret_cast<decltype(&grpc_server_request_call)>(
      dlsym(RTLD_NEXT, "grpc_server_request_call"));
  __tsan_release(tag);
  return real(server, call, details, initial_metadata, for_call, for_notification, tag);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  static auto* const real = reinterpret_cast<decltype(&grpc_completion_queue_next)>(
      dlsym(RTLD_NEXT, "grpc_completion_queue_next"));
  const grpc_event event = real(queue, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  static auto* const real = reinterpret_cast<decltype(&grpc_completion_queue_pluck)>(
      dlsym(RTLD_NEXT, "grpc_completion_queue_pluck"));
  const grpc_event event = real(queue, tag, deadline, reserved);
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(tag);
  return event;
}

// A message within the process is handed over as the bytes it was written to.
grpc_byte_buffer* grpc_raw_byte_buffer_create(grpc_slice* slices, size_t count) {
  static auto* const real = reinterpret_cast<decltype(&grpc_raw_byte_buffer_create)>(
      dlsym(RTLD_NEXT, "grpc_raw_byte_buffer_create"));
  for (size_t i = 0; i < count; ++i) __tsan_release(GRPC_SLICE_START_PTR(slices[i]));
  return real(slices, count);
}

int grpc_byte_buffer_reader_peek(grpc_byte_buffer_reader* reader, grpc_slice** slice) {
  static auto* const real = reinterpret_cast<decltype(&grpc_byte_buffer_reader_peek)>(
      dlsym(RTLD_NEXT, "grpc_byte_buffer_reader_peek"));
  const int any = real(reader, slice);
  if (any != 0) __tsan_acquire(GRPC_SLICE_START_PTR(**slice));
  return any;
}
}  // extern "C"
