// Shared by the renderer's own source files.
#pragma once

#include "gateway/prompt/jinja/renderer.h"
#include "services/base/status.h"

namespace switchyard::gateway::jinja {

class Renderer::Step {
 public:
  explicit Step(Renderer* renderer) : renderer_(renderer) {
    ++renderer_->depth_;
    ++renderer_->steps_;
  }
  ~Step() { --renderer_->depth_; }
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  // Whether the bounds hold.
  absl::Status status() const {
    if (renderer_->depth_ > renderer_->limits_.depth_max) {
      return ResourceExhausted("the template nests deeper than {}", renderer_->limits_.depth_max);
    }
    if (renderer_->steps_ > renderer_->limits_.steps_max) {
      return ResourceExhausted("the template takes more than {} steps",
                               renderer_->limits_.steps_max);
    }
    return absl::OkStatus();
  }

 private:
  Renderer* renderer_;
};

}  // namespace switchyard::gateway::jinja
