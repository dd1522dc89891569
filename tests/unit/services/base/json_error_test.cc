#include "services/base/json_error.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(NotValidJson, SaysThePlaceWithoutTheLibrarysName) {
  EXPECT_EQ(NotValidJson("[json.exception.parse_error.101] parse error at line 2, column 1: syntax "
                         "error while parsing value - unexpected end of input; expected '}'"),
            "not valid JSON at line 2, column 1: syntax error while parsing value - unexpected end "
            "of input; expected '}'");
  EXPECT_EQ(NotValidJson("[json.exception.out_of_range.406] number overflow parsing '1e999'"),
            "not valid JSON: number overflow parsing '1e999'");
  EXPECT_EQ(NotValidJson("something else [a] b"), "not valid JSON: something else [a] b");
}

}  // namespace
}  // namespace switchyard
