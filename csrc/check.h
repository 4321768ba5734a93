// One way to refuse: a message that says what was wrong.
#pragma once

#include <stdexcept>
#include <string>

namespace fastcnn {

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("fastcnn: ") + message);
}

}  // namespace fastcnn
